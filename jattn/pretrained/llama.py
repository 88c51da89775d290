"""Llama and Gemma 3 as GGUF files have them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jattn.models.language_model import LanguageModelConfig
from jattn.pretrained.fields import MOST_LAYERS, Fields
from jattn.pretrained.fill import Arrays

LOCAL_BASE = 10000.0
"""Of the angles of Gemma 3's local layers, which its files do not say."""
GLOBAL_EVERY = 6
"""Layers of Gemma 3, of which the last is global."""


def llama_config(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> LanguageModelConfig:
    """What the file of a Llama says.

    Raises:
      ValueError: a field is missing or out of bounds, or asks for what the model does not have; named.
    """
    fields = Fields(metadata, "llama.")
    for name in ("rope.scaling.type", "expert_count"):
        fields.equals(name, None)
    return LanguageModelConfig(**_sizes(fields, tensors), rotary_bases=(fields.number("rope.freq_base", 10000.0),))


def gemma3_config(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> LanguageModelConfig:
    """What the file of a Gemma 3 says.

    Raises:
      ValueError: a field is missing or out of bounds, or asks for what the model does not have; named.
    """
    fields = Fields(metadata, "gemma3.")
    fields.equals("rope.scaling.type", None)
    local = GLOBAL_EVERY - 1
    return LanguageModelConfig(
        **_sizes(fields, tensors),
        activation="gelu_tanh",
        rotary_bases=(LOCAL_BASE,) * local + (fields.number("rope.freq_base", 1000000.0),),
        windows=(fields.size("attention.sliding_window"),) * local + (None,),
        query_key_norms=True,
        post_norms=True,
        scaled_embeddings=True,
    )


def llama_arrays(tensors: Mapping[str, np.ndarray], config: LanguageModelConfig) -> Arrays:
    """What makes each parameter of the model out of the tensors of a file of llama.cpp's `llama`."""
    arrays = _arrays(tensors, config)
    for layer in range(config.layers):
        for ours, theirs, heads in (("query", "q", config.heads), ("key", "k", config.kv_heads or config.heads)):
            name = f"blk.{layer}.attn_{theirs}.weight"
            arrays[f"blocks.{layer}.attention.{ours}.kernel"] = partial(_turned_by_halves, tensors, name, heads)
    return arrays


def gemma3_arrays(tensors: Mapping[str, np.ndarray], config: LanguageModelConfig) -> Arrays:
    """What makes each parameter of the model out of the tensors of a file of llama.cpp's `gemma3`."""
    arrays = _arrays(tensors, config)
    for layer in range(config.layers):
        for ours, theirs in (
            ("attention.query_norm", "attn_q_norm"),
            ("attention.key_norm", "attn_k_norm"),
            ("attention_post_norm", "post_attention_norm"),
            ("feed_forward_post_norm", "post_ffw_norm"),
        ):
            name = f"blk.{layer}.{theirs}.weight"
            arrays[f"blocks.{layer}.{ours}.scale"] = partial(tensors.__getitem__, name)
    return arrays


def _sizes(fields: Fields, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    heads = fields.size("attention.head_count")
    return {
        "vocabulary": len(tensors["token_embd.weight"]),
        "width": fields.size("embedding_length"),
        "layers": fields.size("block_count", most=MOST_LAYERS),
        "heads": heads,
        "hidden": fields.size("feed_forward_length"),
        "kv_heads": fields.size("attention.head_count_kv", heads),
        "head_dim": fields.size("attention.key_length", fields.size("embedding_length") // heads),
        "norm_epsilon": fields.number("attention.layer_norm_rms_epsilon"),
        "tied": "output.weight" not in tensors,
    }


def _arrays(tensors: Mapping[str, np.ndarray], config: LanguageModelConfig) -> dict[str, Any]:
    """What is the same in both."""
    arrays = {
        "embedding.embedding": partial(tensors.__getitem__, "token_embd.weight"),
        "norm.scale": partial(tensors.__getitem__, "output_norm.weight"),
    }
    if not config.tied:
        arrays["output.kernel"] = partial(transposed, tensors, "output.weight")
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"blk.{layer}."
        for name, other in (("attention_norm", "attn_norm"), ("feed_forward_norm", "ffn_norm")):
            arrays[f"{ours}{name}.scale"] = partial(tensors.__getitem__, f"{theirs}{other}.weight")
        for name, others in (
            ("attention.query", ("attn_q",)),
            ("attention.key", ("attn_k",)),
            ("attention.value", ("attn_v",)),
            ("attention.output", ("attn_output",)),
            ("feed_forward.inner", ("ffn_gate", "ffn_up")),
            ("feed_forward.outer", ("ffn_down",)),
        ):
            arrays[f"{ours}{name}.kernel"] = partial(
                transposed, tensors, *(f"{theirs}{other}.weight" for other in others)
            )
    return arrays


def transposed(tensors: Mapping[str, np.ndarray], *names: str) -> np.ndarray:
    """Matrices (out, in) as one (in, out), side by side."""
    return np.concatenate([tensors[name].T for name in names], axis=1)


def _turned_by_halves(tensors: Mapping[str, np.ndarray], name: str, heads: int) -> np.ndarray:
    """The projection (in, out) of queries or keys whose rows the file has with the two of each plane side by side."""
    rows = tensors[name]
    if len(rows) % (2 * heads):
        raise ValueError(f"tensor {name!r} must have an even number of rows for each of {heads} heads; got {len(rows)}")
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape).T
