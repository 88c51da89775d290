"""Pretrained weights and tokenizers: files found, checked against digests that are pinned, and read."""

from jattn.pretrained.weights import Weights, open_weights

__all__ = ["Weights", "open_weights"]
