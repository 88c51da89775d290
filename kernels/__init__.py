"""Attention kernels: arrays in, arrays out. This floor imports jax and nothing of ours."""

from kernels.dense.reference import attention
from kernels.linear.reference import linear_attention

__all__ = ["attention", "linear_attention"]
