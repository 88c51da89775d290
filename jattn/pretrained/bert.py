"""BERT as the library transformers writes it: config.json and tensors by its names."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jattn.models.encoder import EncoderConfig
from jattn.pretrained.fields import MOST_LAYERS, Fields
from jattn.pretrained.fill import Arrays
from jattn.pretrained.llama import transposed


def bert_config(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> EncoderConfig:
    """What config.json says.

    Raises:
      ValueError: a field is missing or out of bounds, or asks for what the model does not have; named.
    """
    fields = Fields(metadata)
    for name, value in (("hidden_act", "gelu"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
        fields.equals(name, value)
    return EncoderConfig(
        vocabulary=fields.size("vocab_size"),
        width=fields.size("hidden_size"),
        layers=fields.size("num_hidden_layers", most=MOST_LAYERS),
        heads=fields.size("num_attention_heads"),
        hidden=fields.size("intermediate_size"),
        positions=fields.size("max_position_embeddings"),
        kinds=fields.size("type_vocab_size"),
        norm_epsilon=fields.number("layer_norm_eps"),
    )


def bert_arrays(tensors: Mapping[str, np.ndarray], config: EncoderConfig) -> Arrays:
    """What makes each parameter of the model out of tensors by BERT's names; heads of training tasks are left."""
    top = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""
    arrays: dict[str, Any] = {
        f"{ours}.embedding": partial(tensors.__getitem__, f"{top}embeddings.{theirs}_embeddings.weight")
        for ours, theirs in (("embedding", "word"), ("positions", "position"), ("kinds", "token_type"))
    }
    norms = [("norm", f"{top}embeddings.LayerNorm")]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"{top}encoder.layer.{layer}."
        norms += [
            (f"{ours}attention_norm", f"{theirs}attention.output.LayerNorm"),
            (f"{ours}feed_forward_norm", f"{theirs}output.LayerNorm"),
        ]
        for name, other in (
            ("attention.query", "attention.self.query"),
            ("attention.key", "attention.self.key"),
            ("attention.value", "attention.self.value"),
            ("attention.output", "attention.output.dense"),
            ("feed_forward.inner", "intermediate.dense"),
            ("feed_forward.outer", "output.dense"),
        ):
            arrays[f"{ours}{name}.kernel"] = partial(transposed, tensors, f"{theirs}{other}.weight")
            arrays[f"{ours}{name}.bias"] = partial(tensors.__getitem__, f"{theirs}{other}.bias")
    for name, other in norms:
        arrays[f"{name}.scale"] = partial(tensors.__getitem__, f"{other}.weight")
        arrays[f"{name}.bias"] = partial(tensors.__getitem__, f"{other}.bias")
    return arrays
