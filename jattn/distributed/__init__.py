"""Attention over sequences that are too long for one device."""

from jattn.distributed.ring import ring_attention, sequence_parallel_attention
from jattn.distributed.zigzag import unzigzag, zigzag

__all__ = ["ring_attention", "sequence_parallel_attention", "unzigzag", "zigzag"]
