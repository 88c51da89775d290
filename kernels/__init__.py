"""Attention kernels: arrays in, arrays out. This floor imports jax and nothing of ours."""

from kernels import masks
from kernels.attention import attention
from kernels.decode import decode
from kernels.explain import Explanation, explain
from kernels.linear.reference import linear_attention
from kernels.merge import merge
from kernels.schedule import Tiles
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
    "Mass",
    "RowSums",
    "Statistics",
    "Tiles",
    "TopKeys",
    "WindowedDistance",
    "attention",
    "decode",
    "explain",
    "linear_attention",
    "masks",
    "merge",
]
