"""Whisper as CTranslate2 writes it (`WhisperSpec`)."""

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jattn.models.speech import SpeechConfig
from jattn.pretrained.fill import Arrays


def whisper_config(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> SpeechConfig:
    """What the shapes of a file's tensors say; it tells of the number of heads alone.

    Raises:
      ValueError: encoder and decoder have other numbers of heads, or a tensor has another number of axes.
    """
    heads, others = (int(_with_axes(tensors, f"{part}/num_heads", 0)) for part in ("encoder", "decoder"))
    if heads != others:
        raise ValueError(f"encoder and decoder must have as many heads; they have {heads} and {others}")
    width, mels, _ = _with_axes(tensors, "encoder/conv1/weight", 3).shape
    return SpeechConfig(
        vocabulary=len(_with_axes(tensors, "decoder/embeddings/weight", 2)),
        width=width,
        encoder_layers=_layers(tensors, "encoder"),
        decoder_layers=_layers(tensors, "decoder"),
        heads=heads,
        hidden=len(_with_axes(tensors, "encoder/layer_0/ffn/linear_0/bias", 1)),
        mels=mels,
        frames=len(_with_axes(tensors, "encoder/position_encodings/encodings", 2)),
        positions=len(_with_axes(tensors, "decoder/position_encodings/encodings", 2)),
    )


def whisper_arrays(tensors: Mapping[str, np.ndarray], config: SpeechConfig) -> Arrays:
    """What makes each parameter of the model out of a file's tensors."""
    arrays: dict[str, Any] = {
        "decoder.embedding.embedding": partial(tensors.__getitem__, "decoder/embeddings/weight"),
    }
    for part in ("encoder", "decoder"):
        arrays[f"{part}.positions.embedding"] = partial(tensors.__getitem__, f"{part}/position_encodings/encodings")
    for ours, theirs in (("first", "conv1"), ("second", "conv2")):
        arrays[f"encoder.{ours}.kernel"] = partial(_convolution, tensors, f"encoder/{theirs}/weight")
        arrays[f"encoder.{ours}.bias"] = partial(tensors.__getitem__, f"encoder/{theirs}/bias")
    norms = [(f"{part}.norm", f"{part}/layer_norm") for part in ("encoder", "decoder")]
    for part, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for layer in range(layers):
            ours, theirs = f"{part}.blocks.{layer}.", f"{part}/layer_{layer}/"
            parts = {"attention": "self_attention", "feed_forward": "ffn"}
            maps = [
                ("attention.query", "self_attention/linear_0", 3, 0),
                ("attention.key", "self_attention/linear_0", 3, 1),
                ("attention.value", "self_attention/linear_0", 3, 2),
                ("attention.output", "self_attention/linear_1", 1, 0),
                ("feed_forward.inner", "ffn/linear_0", 1, 0),
                ("feed_forward.outer", "ffn/linear_1", 1, 0),
            ]
            if part == "decoder":
                parts["cross_attention"] = "attention"
                maps += [
                    ("cross_attention.query", "attention/linear_0", 1, 0),
                    ("cross_attention.key", "attention/linear_1", 2, 0),
                    ("cross_attention.value", "attention/linear_1", 2, 1),
                    ("cross_attention.output", "attention/linear_2", 1, 0),
                ]
            norms += [(f"{ours}{name}_norm", f"{theirs}{other}/layer_norm") for name, other in parts.items()]
            for name, other, count, which in maps:
                arrays[f"{ours}{name}.kernel"] = partial(_part, tensors, f"{theirs}{other}/weight", count, which)
                arrays[f"{ours}{name}.bias"] = partial(_part, tensors, f"{theirs}{other}/bias", count, which)
    for name, other in norms:
        arrays[f"{name}.scale"] = partial(tensors.__getitem__, f"{other}/gamma")
        arrays[f"{name}.bias"] = partial(tensors.__getitem__, f"{other}/beta")
    return arrays


def _with_axes(tensors: Mapping[str, np.ndarray], name: str, axes: int) -> np.ndarray:
    if (tensor := tensors[name]).ndim != axes:
        raise ValueError(f"{name} must have {axes} axes; got shape {tensor.shape}")
    return tensor


def _layers(tensors: Mapping[str, np.ndarray], part: str) -> int:
    return next(layer for layer in itertools.count() if f"{part}/layer_{layer}/ffn/linear_0/weight" not in tensors)


def _part(tensors: Mapping[str, np.ndarray], name: str, count: int, which: int) -> np.ndarray:
    """One of several linear maps that a file has one below the other, (in, out); or its bias."""
    return np.split(tensors[name], count)[which].T


def _convolution(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """(out, in, width) as (width, in, out)."""
    return tensors[name].transpose(2, 1, 0)
