"""Attention mechanisms: one file each, the functional form and then its Flax NNX module."""

from jattn.mechanisms.lightning import GatedLinearAttention, alibi_slopes, decay_by_layer, decay_of_paper
from jattn.mechanisms.multi_head import MultiHeadAttention, multi_head_attention

__all__ = [
    "GatedLinearAttention",
    "MultiHeadAttention",
    "alibi_slopes",
    "decay_by_layer",
    "decay_of_paper",
    "multi_head_attention",
]
