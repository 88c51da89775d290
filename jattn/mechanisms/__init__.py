"""Attention mechanisms: one file each, the functional form and then its Flax NNX module."""

from jattn.mechanisms.bi_level_routing import (
    BiLevelRoutingAttention,
    RegionRouting,
    attention_over_regions,
    cut_regions,
    route,
    uncut_regions,
)
from jattn.mechanisms.causal_routing import RoutingState, causal_routing_attention, causal_routing_step
from jattn.mechanisms.causal_self_attention import CausalSelfAttention
from jattn.mechanisms.full_attention import FullAttention
from jattn.mechanisms.landmark import (
    grouped_attention,
    grouped_softmax,
    grouped_softmax_weights,
    insert_landmarks,
    is_landmark,
    landmark_attention,
    strip_landmarks,
    target_mask,
)
from jattn.mechanisms.landmark_retrieval import LandmarkAttention, LandmarkCache, attend_chunk, retrieve
from jattn.mechanisms.lightning import GatedLinearAttention, alibi_slopes, decay_by_layer, decay_of_paper
from jattn.mechanisms.local import LocalAttention, LocalState, local_attention, local_attention_step
from jattn.mechanisms.mixture_of_heads import (
    HeadRouting,
    MixtureOfHeadsAttention,
    learned_routing,
    query_norm_routing,
    sparse_heads,
)
from jattn.mechanisms.multi_head import MultiHeadAttention, multi_head_attention
from jattn.mechanisms.routing import RoutingAttention, RoutingDecoding, routing_attention, routing_lists

__all__ = [
    "BiLevelRoutingAttention",
    "CausalSelfAttention",
    "FullAttention",
    "GatedLinearAttention",
    "HeadRouting",
    "LandmarkAttention",
    "LandmarkCache",
    "LocalAttention",
    "LocalState",
    "MixtureOfHeadsAttention",
    "MultiHeadAttention",
    "RegionRouting",
    "RoutingAttention",
    "RoutingDecoding",
    "RoutingState",
    "alibi_slopes",
    "attend_chunk",
    "attention_over_regions",
    "causal_routing_attention",
    "causal_routing_step",
    "cut_regions",
    "decay_by_layer",
    "decay_of_paper",
    "grouped_attention",
    "grouped_softmax",
    "grouped_softmax_weights",
    "insert_landmarks",
    "is_landmark",
    "landmark_attention",
    "learned_routing",
    "local_attention",
    "local_attention_step",
    "multi_head_attention",
    "query_norm_routing",
    "retrieve",
    "route",
    "routing_attention",
    "routing_lists",
    "sparse_heads",
    "strip_landmarks",
    "target_mask",
    "uncut_regions",
]
