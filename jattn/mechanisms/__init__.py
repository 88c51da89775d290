"""Attention mechanisms: one file each, the functional form and then its Flax NNX module."""

from jattn.mechanisms.multi_head import MultiHeadAttention, multi_head_attention

__all__ = ["MultiHeadAttention", "multi_head_attention"]
