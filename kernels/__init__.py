"""Attention kernels: arrays in, arrays out. This floor imports jax and nothing of ours."""

from kernels import masks
from kernels.attention import attention
from kernels.decode import decode
from kernels.explain import Explanation, explain
from kernels.linear.attention import (
    LinearState,
    causal_linear_attention,
    linear_attention,
    linear_attention_step,
)
from kernels.merge import merge
from kernels.schedule import Tiles
from kernels.sparse.attention import block_sparse_attention
from kernels.statistics.requests import (
    ColumnSums,
    Functional,
    Mass,
    RowSums,
    Statistics,
    TopKeys,
    WindowedDistance,
)

__all__ = [
    "ColumnSums",
    "Explanation",
    "Functional",
    "LinearState",
    "Mass",
    "RowSums",
    "Statistics",
    "Tiles",
    "TopKeys",
    "WindowedDistance",
    "attention",
    "block_sparse_attention",
    "causal_linear_attention",
    "decode",
    "explain",
    "linear_attention",
    "linear_attention_step",
    "masks",
    "merge",
]
