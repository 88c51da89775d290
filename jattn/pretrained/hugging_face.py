"""Llama, Gemma 3 and GPT-2 as the library transformers writes them: config.json and tensors by its names."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jattn.models.language_model import LanguageModelConfig
from jattn.pretrained.fields import MOST_LAYERS, Fields
from jattn.pretrained.fill import Arrays
from jattn.pretrained.llama import GLOBAL_EVERY, LOCAL_BASE, transposed


def llama_config(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> LanguageModelConfig:
    """What config.json of a Llama says.

    Raises:
      ValueError: a field is missing or out of bounds, or asks for what the model does not have; named.
    """
    fields = Fields(metadata)
    fields.equals("hidden_act", "silu")
    return LanguageModelConfig(**_sizes(fields), tied=_tied(fields, False), rotary_bases=(_base(fields, 10000.0),))


def gemma3_config(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> LanguageModelConfig:
    """What config.json of a Gemma 3 that reads text says.

    Raises:
      ValueError: a field is missing or out of bounds, or asks for what the model does not have; named.
    """
    fields = Fields(metadata)
    for name, value in (
        ("hidden_activation", "gelu_pytorch_tanh"),
        ("attn_logit_softcapping", None),
        ("final_logit_softcapping", None),
        ("use_bidirectional_attention", False),
    ):
        fields.equals(name, value)
    sizes = _sizes(fields)
    every = fields.size("sliding_window_pattern", GLOBAL_EVERY)
    kinds = metadata.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention" for layer in range(1, sizes["layers"] + 1)
    ]
    if len(kinds) != sizes["layers"] or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise ValueError(f"field 'layer_types' must say sliding_attention or full_attention for each layer: {kinds}")
    whole = [kind == "full_attention" for kind in kinds]
    bases = metadata.get("rope_parameters") or {}
    if "full_attention" in bases:
        local, base = (_base(Fields(bases[kind]), 0.0) for kind in ("sliding_attention", "full_attention"))
    else:
        local, base = fields.number("rope_local_base_freq", LOCAL_BASE), _base(fields, 1000000.0)
    return LanguageModelConfig(
        **sizes,
        tied=_tied(fields, True),
        activation="gelu_tanh",
        rotary_bases=tuple(base if full else local for full in whole),
        windows=tuple(None if full else fields.size("sliding_window") for full in whole),
        query_key_norms=True,
        post_norms=True,
        scaled_embeddings=True,
        scale=fields.number("query_pre_attn_scalar") ** -0.5,
    )


def gpt2_config(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> LanguageModelConfig:
    """What config.json of a GPT-2 says.

    Raises:
      ValueError: a field is missing or out of bounds, or asks for what the model does not have; named.
    """
    fields = Fields(metadata)
    for name, value in (
        ("activation_function", "gelu_new"),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        fields.equals(name, value)
    width = fields.size("n_embd")
    return LanguageModelConfig(
        vocabulary=fields.size("vocab_size"),
        width=width,
        layers=fields.size("n_layer", most=MOST_LAYERS),
        heads=fields.size("n_head"),
        hidden=4 * width if metadata.get("n_inner") is None else fields.size("n_inner"),
        norm="layer",
        norm_epsilon=fields.number("layer_norm_epsilon"),
        activation="gelu_tanh",
        gated=False,
        biases=True,
        rotary_bases=(None,),
        positions=fields.size("n_positions"),
        tied=_tied(fields, True),
    )


def llama_arrays(tensors: Mapping[str, np.ndarray], config: LanguageModelConfig) -> Arrays:
    """What makes each parameter of the model out of tensors by a Llama's names."""
    arrays = _arrays(tensors, config)
    for layer in range(config.layers):
        for ours, theirs in (("attention_norm", "input_layernorm"), ("feed_forward_norm", "post_attention_layernorm")):
            name = f"model.layers.{layer}.{theirs}.weight"
            arrays[f"blocks.{layer}.{ours}.scale"] = partial(tensors.__getitem__, name)
    arrays["norm.scale"] = partial(tensors.__getitem__, "model.norm.weight")
    return arrays


def gemma3_arrays(tensors: Mapping[str, np.ndarray], config: LanguageModelConfig) -> Arrays:
    """What makes each parameter of the model out of tensors by a Gemma 3's names; norms are stored less one."""
    arrays = _arrays(tensors, config)
    for layer in range(config.layers):
        for ours, theirs in (
            ("attention_norm", "input_layernorm"),
            ("attention.query_norm", "self_attn.q_norm"),
            ("attention.key_norm", "self_attn.k_norm"),
            ("attention_post_norm", "post_attention_layernorm"),
            ("feed_forward_norm", "pre_feedforward_layernorm"),
            ("feed_forward_post_norm", "post_feedforward_layernorm"),
        ):
            name = f"model.layers.{layer}.{theirs}.weight"
            arrays[f"blocks.{layer}.{ours}.scale"] = partial(_one_more, tensors, name)
    arrays["norm.scale"] = partial(_one_more, tensors, "model.norm.weight")
    return arrays


def gpt2_arrays(tensors: Mapping[str, np.ndarray], config: LanguageModelConfig) -> Arrays:
    """What makes each parameter of the model out of tensors by a GPT-2's names, whose matrices are (in, out)."""
    top = "transformer." if "transformer.wte.weight" in tensors else ""
    arrays: dict[str, Any] = {
        "embedding.embedding": partial(tensors.__getitem__, f"{top}wte.weight"),
        "positions.embedding": partial(tensors.__getitem__, f"{top}wpe.weight"),
    }
    if not config.tied:
        arrays["output.kernel"] = partial(transposed, tensors, "lm_head.weight")
    norms = [("norm", f"{top}ln_f")]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"{top}h.{layer}."
        norms += [(f"{ours}attention_norm", f"{theirs}ln_1"), (f"{ours}feed_forward_norm", f"{theirs}ln_2")]
        for parameter, kind in (("kernel", "weight"), ("bias", "bias")):
            for third, name in enumerate(("query", "key", "value")):
                arrays[f"{ours}attention.{name}.{parameter}"] = partial(
                    _third, tensors, f"{theirs}attn.c_attn.{kind}", third
                )
            for name, other in (
                ("attention.output", "attn.c_proj"),
                ("feed_forward.inner", "mlp.c_fc"),
                ("feed_forward.outer", "mlp.c_proj"),
            ):
                arrays[f"{ours}{name}.{parameter}"] = partial(tensors.__getitem__, f"{theirs}{other}.{kind}")
    for name, other in norms:
        arrays[f"{name}.scale"] = partial(tensors.__getitem__, f"{other}.weight")
        arrays[f"{name}.bias"] = partial(tensors.__getitem__, f"{other}.bias")
    return arrays


def _sizes(fields: Fields) -> dict[str, Any]:
    """What Llama and Gemma 3 call by the same names."""
    for name in ("attention_bias", "mlp_bias"):
        fields.equals(name, False)
    heads = fields.size("num_attention_heads")
    width = fields.size("hidden_size")
    return {
        "vocabulary": fields.size("vocab_size"),
        "width": width,
        "layers": fields.size("num_hidden_layers", most=MOST_LAYERS),
        "heads": heads,
        "hidden": fields.size("intermediate_size"),
        "kv_heads": fields.size("num_key_value_heads", heads),
        "head_dim": width // heads if fields.values.get("head_dim") is None else fields.size("head_dim"),
        "norm_epsilon": fields.number("rms_norm_eps"),
    }


def _tied(fields: Fields, default: bool) -> bool:
    """Whether config.json says so; it leaves out what is the default of the architecture."""
    return bool(fields.values.get("tie_word_embeddings", default))


def _base(fields: Fields, default: float) -> float:
    """Of the angles, which newer files keep among others under rope_parameters; scaled angles are not read."""
    fields.equals("rope_scaling", None)
    fields = Fields(fields.values.get("rope_parameters") or fields.values)
    fields.equals("rope_type", "default")
    return fields.number("rope_theta", default)


def _arrays(tensors: Mapping[str, np.ndarray], config: LanguageModelConfig) -> dict[str, Any]:
    """What is the same in Llama and Gemma 3."""
    arrays: dict[str, Any] = {"embedding.embedding": partial(tensors.__getitem__, "model.embed_tokens.weight")}
    if not config.tied:
        arrays["output.kernel"] = partial(transposed, tensors, "lm_head.weight")
    for layer in range(config.layers):
        for name, others in (
            ("attention.query", ("self_attn.q_proj",)),
            ("attention.key", ("self_attn.k_proj",)),
            ("attention.value", ("self_attn.v_proj",)),
            ("attention.output", ("self_attn.o_proj",)),
            ("feed_forward.inner", ("mlp.gate_proj", "mlp.up_proj")),
            ("feed_forward.outer", ("mlp.down_proj",)),
        ):
            arrays[f"blocks.{layer}.{name}.kernel"] = partial(
                transposed, tensors, *(f"model.layers.{layer}.{other}.weight" for other in others)
            )
    return arrays


def _one_more(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return tensors[name].astype(np.float32) + 1


def _third(tensors: Mapping[str, np.ndarray], name: str, third: int) -> np.ndarray:
    return np.split(tensors[name], 3, axis=-1)[third]
