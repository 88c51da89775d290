"""Small random Llama, Gemma 3 and GPT-2, read from files, against their definitions in float64."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders_in_numpy import ARCHITECTURES, GEMMA3, HEAD_DIM, HEADS, KV_HEADS, LLAMA, VOCABULARY, Architecture
from flax import nnx
from safetensors.numpy import save_file

from jattn.models.generate import generate
from jattn.models.language_model import LanguageModel
from jattn.pretrained.load import load_model

TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (2, 13))
LENGTHS = np.array([13, 9])
STEPS = 8


@jax.jit
def forward(model: Any, tokens: Any) -> Any:
    return nnx.merge(*model)(tokens)


def logits(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(forward(nnx.split(model), jnp.asarray(tokens)).astype(jnp.float32))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def write(folder: Path, architecture: Architecture, tensors: dict[str, np.ndarray]) -> tuple[Path, Path]:
    weights, config = folder / "model.safetensors", folder / "config.json"
    save_file(tensors, weights)
    config.write_text(json.dumps(architecture.config))
    return weights, config


@pytest.fixture(scope="module", params=ARCHITECTURES)
def drawn(request, tmp_path_factory):
    """The architecture, its tensors, the file with them, and the model read from it."""
    architecture = ARCHITECTURES[request.param]
    tensors = architecture.draw()
    files = write(tmp_path_factory.mktemp(request.param), architecture, tensors)
    return architecture, tensors, files, load_model(*files)


def test_logits_are_those_of_the_definition(drawn) -> None:
    architecture, tensors, _, model = drawn
    assert error(logits(model, TOKENS), architecture.batch_logits(tensors, TOKENS)) < 1e-5


def test_generated_tokens_are_the_likeliest_of_the_definition(drawn) -> None:
    """Prompts of two lengths, past the local layers' window, with keys and values cached."""
    architecture, tensors, _, model = drawn
    padded = np.where(np.arange(13) < LENGTHS[:, None], TOKENS, 7)
    found = np.asarray(generate(model, jnp.asarray(padded), STEPS, lengths=jnp.asarray(LENGTHS)).tokens)
    for prompt, length, continued in zip(padded, LENGTHS, found, strict=True):
        text = list(prompt[:length])
        for token in continued:
            expected = architecture.logits(architecture.config, tensors, np.array(text))[-1]
            assert token == expected.argmax()
            text.append(token)


def test_cached_logits_are_those_of_one_pass(tmp_path: Path) -> None:
    """A prompt in pieces with padding behind them, which is forgotten, then a token at a time."""
    tensors = GEMMA3.draw()
    model = load_model(*write(tmp_path, GEMMA3, tensors))
    expected = GEMMA3.batch_logits(tensors, TOKENS)

    @jax.jit
    def extend(parts, tokens, state, counts):
        model = nnx.merge(*parts)
        features, state = model.extend(tokens, state, counts)
        return model.logits(features), state

    parts, state = nnx.split(model), model.empty_state(2, 16)
    taken, found = 0, []
    for size in (5, 5, 1, 1, 1):
        piece = np.full((2, 7 if size == 5 else 1), 3)
        piece[:, :size] = TOKENS[:, taken : taken + size]
        read, state = extend(parts, jnp.asarray(piece), state, jnp.full(2, size))
        found.append(np.asarray(read)[:, :size])
        taken += size
    assert error(np.concatenate(found, axis=1), expected) < 1e-5


def test_bfloat16(drawn) -> None:
    """As near as numbers of 8 bits allow: those of the definition with weights so rounded, and a few roundings more."""
    architecture, tensors, files, _ = drawn
    model = load_model(*files, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.bfloat16)}
    rounded = {name: np.asarray(jnp.asarray(value, jnp.bfloat16), np.float32) for name, value in tensors.items()}
    expected = architecture.batch_logits(rounded, TOKENS)
    found = logits(model, TOKENS)
    assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 0.05


def write_gguf(path: Path, architecture: Architecture, tensors: dict[str, np.ndarray]) -> None:
    """As llama.cpp converts these architectures."""
    config, kind = architecture.config, "llama" if architecture is LLAMA else "gemma3"
    writer = gguf.GGUFWriter(path, kind)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(config["head_dim"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if kind == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
    model_kind = gguf.MODEL_ARCH.LLAMA if kind == "llama" else gguf.MODEL_ARCH.GEMMA3
    names = gguf.get_tensor_name_map(model_kind, config["num_hidden_layers"])
    for name, tensor in tensors.items():
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = HEADS if "q_proj" in name else KV_HEADS
            shape = (heads, 2, len(tensor) // heads // 2, tensor.shape[1])
            tensor = tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)
        if kind == "gemma3" and "norm" in name:
            tensor = tensor + 1
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SILENT = {"sliding_window_pattern": 6, "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": HEAD_DIM}
GGUF_GEMMA3 = replace(GEMMA3, config=GEMMA3.config | SILENT)
"""With what a GGUF file does not say as it always is."""


@pytest.mark.parametrize("architecture", [LLAMA, GGUF_GEMMA3], ids=["llama", "gemma3"])
def test_gguf(architecture: Architecture, tmp_path: Path) -> None:
    tensors = architecture.draw()
    write_gguf(tmp_path / "model.gguf", architecture, tensors)
    found = logits(load_model(tmp_path / "model.gguf"), TOKENS)
    assert error(found, architecture.batch_logits(tensors, TOKENS)) < 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "'hidden_act' must be 'silu'; got 'gelu'"),
        ("llama", {"attention_bias": True}, "'attention_bias' must be False"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "'rope_scaling' must be None"),
        ("llama", {"num_hidden_layers": 0}, "'num_hidden_layers' must be a whole number"),
        ("llama", {"model_type": "mamba"}, "must be among llama, gemma3_text, .*gpt2.*; got 'mamba'"),
        ("llama", {"num_hidden_layers": 3}, "model.layers.2"),
        ("gemma3", {"layer_types": ["full_attention"]}, "'layer_types' must say"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "'final_logit_softcapping' must be None"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' must be False"),
        ("gpt2", {"n_positions": 16}, r"'positions.embedding' must be of shape \(16, 24\); got \(32, 24\)"),
    ],
)
def test_what_the_model_does_not_have_is_refused(name: str, changes: dict, message: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    changed = replace(architecture, config=architecture.config | changes)
    with pytest.raises(ValueError, match=message):
        load_model(*write(tmp_path, changed, architecture.draw()))
