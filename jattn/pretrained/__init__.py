"""Pretrained weights and tokenizers: files found, checked against digests that are pinned, and read."""

from jattn.pretrained.files import ModelFiles, fetch, find
from jattn.pretrained.known import MODELS
from jattn.pretrained.tokenizer import load_tokenizer
from jattn.pretrained.weights import Weights, open_weights

__all__ = ["MODELS", "ModelFiles", "Weights", "fetch", "find", "load_tokenizer", "open_weights"]
