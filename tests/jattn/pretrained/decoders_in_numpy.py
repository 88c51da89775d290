"""Llama, Gemma 3 and GPT-2 in float64, text by text and head by head, as their papers and published code define them.

Tensors have the names of the library transformers; each architecture has small random ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]
VOCABULARY, WIDTH, HEADS, KV_HEADS, HIDDEN, HEAD_DIM = 61, 24, 4, 2, 40, 8


@dataclass(frozen=True)
class Architecture:
    """Its config.json, the shapes of its tensors, and its logits (length, vocabulary) of one text's tokens."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    logits: Callable[[dict[str, Any], Tensors, np.ndarray], np.ndarray]

    def draw(self) -> dict[str, np.ndarray]:
        """Tensors large enough that every part of the model matters."""
        rng = np.random.default_rng(0)
        return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in self.shapes.items()}

    def batch_logits(self, tensors: Tensors, tokens: np.ndarray) -> np.ndarray:
        return np.stack([self.logits(self.config, tensors, text) for text in tokens])


def causal_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, scale: float, window: int | None = None):
    """Of one head, (length, head_dim) each."""
    ages = np.arange(len(query))[:, None] - np.arange(len(query))
    scores = np.where((ages >= 0) & (window is None or ages < window), query @ key.T * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ value


def turned(head: np.ndarray, base: float) -> np.ndarray:
    """(x + i y) e^(i θ p) for x the first half of a head's features and y the second."""
    half = head.shape[1] // 2
    angles = np.arange(len(head))[:, None] * base ** (-np.arange(half) / half)
    planes = (head[:, :half] + 1j * head[:, half:]) * np.exp(1j * angles)
    return np.concatenate([planes.real, planes.imag], axis=1)


def rms_norm(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * scale


def layer_norm(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * scale + shift


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def llama_logits(config: dict[str, Any], tensors: Tensors, tokens: np.ndarray) -> np.ndarray:
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    epsilon = config["rms_norm_eps"]
    x = t["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        normed = rms_norm(x, t[f"{name}input_layernorm.weight"], epsilon)
        query, key, value = (normed @ t[f"{name}self_attn.{part}_proj.weight"].T for part in "qkv")
        read = []
        for head in range(HEADS):
            own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            shared = head // (HEADS // KV_HEADS)
            of_keys = slice(shared * HEAD_DIM, (shared + 1) * HEAD_DIM)
            q, k = turned(query[:, own], config["rope_theta"]), turned(key[:, of_keys], config["rope_theta"])
            read.append(causal_attention(q, k, value[:, of_keys], HEAD_DIM**-0.5))
        x = x + np.concatenate(read, axis=1) @ t[f"{name}self_attn.o_proj.weight"].T
        normed = rms_norm(x, t[f"{name}post_attention_layernorm.weight"], epsilon)
        gate, up = (normed @ t[f"{name}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (silu(gate) * up) @ t[f"{name}mlp.down_proj.weight"].T
    return rms_norm(x, t["model.norm.weight"], epsilon) @ t["lm_head.weight"].T


def gemma3_logits(config: dict[str, Any], tensors: Tensors, tokens: np.ndarray) -> np.ndarray:
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    epsilon, scale = config["rms_norm_eps"], config["query_pre_attn_scalar"] ** -0.5

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return rms_norm(x, 1 + t[f"{name}.weight"], epsilon)

    x = t["model.embed_tokens.weight"][tokens] * WIDTH**0.5
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        local = (layer + 1) % config["sliding_window_pattern"] != 0
        base, window = (
            (config["rope_local_base_freq"], config["sliding_window"]) if local else (config["rope_theta"], None)
        )
        query, key, value = (
            normed(x, f"{name}input_layernorm") @ t[f"{name}self_attn.{part}_proj.weight"].T for part in "qkv"
        )
        read = []
        for head in range(HEADS):
            own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            shared = head // (HEADS // KV_HEADS)
            of_keys = slice(shared * HEAD_DIM, (shared + 1) * HEAD_DIM)
            q = turned(normed(query[:, own], f"{name}self_attn.q_norm"), base)
            k = turned(normed(key[:, of_keys], f"{name}self_attn.k_norm"), base)
            read.append(causal_attention(q, k, value[:, of_keys], scale, window))
        added = np.concatenate(read, axis=1) @ t[f"{name}self_attn.o_proj.weight"].T
        x = x + normed(added, f"{name}post_attention_layernorm")
        gate, up = (
            normed(x, f"{name}pre_feedforward_layernorm") @ t[f"{name}mlp.{part}_proj.weight"].T
            for part in ("gate", "up")
        )
        added = (gelu_tanh(gate) * up) @ t[f"{name}mlp.down_proj.weight"].T
        x = x + normed(added, f"{name}post_feedforward_layernorm")
    return normed(x, "model.norm") @ t["model.embed_tokens.weight"].T


def gpt2_logits(config: dict[str, Any], tensors: Tensors, tokens: np.ndarray) -> np.ndarray:
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"], config["layer_norm_epsilon"])

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

    x = t["wte.weight"][tokens] + t["wpe.weight"][: len(tokens)]
    for layer in range(config["n_layer"]):
        name = f"h.{layer}."
        query, key, value = np.split(linear(normed(x, f"{name}ln_1"), f"{name}attn.c_attn"), 3, axis=1)
        cut = [np.split(each, HEADS, axis=1) for each in (query, key, value)]
        read = [causal_attention(q, k, v, (WIDTH // HEADS) ** -0.5) for q, k, v in zip(*cut, strict=True)]
        x = x + linear(np.concatenate(read, axis=1), f"{name}attn.c_proj")
        x = x + linear(gelu_tanh(linear(normed(x, f"{name}ln_2"), f"{name}mlp.c_fc")), f"{name}mlp.c_proj")
    return normed(x, "ln_f") @ t["wte.weight"].T


def _gated_shapes(layers: int, *norms: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            shapes[f"{name}self_attn.{part}_proj.weight"] = (heads * HEAD_DIM, WIDTH)
        shapes[f"{name}self_attn.o_proj.weight"] = (WIDTH, HEADS * HEAD_DIM)
        shapes |= {f"{name}mlp.{part}_proj.weight": (HIDDEN, WIDTH) for part in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        shapes |= {f"{name}{norm}.weight": (HEAD_DIM,) if "self_attn" in norm else (WIDTH,) for norm in norms}
    return shapes | {"model.norm.weight": (WIDTH,)}


def _gpt2_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (32, WIDTH)}
    for name in ("ln_f", *(f"h.{layer}.ln_{number}" for layer in range(layers) for number in (1, 2))):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for layer in range(layers):
        for name, shape in (
            ("attn.c_attn", (WIDTH, 3 * WIDTH)),
            ("attn.c_proj", (WIDTH, WIDTH)),
            ("mlp.c_fc", (WIDTH, 4 * WIDTH)),
            ("mlp.c_proj", (4 * WIDTH, WIDTH)),
        ):
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
    return shapes


_GATED = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 64,
}
LLAMA = Architecture(
    _GATED
    | {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    _gated_shapes(2, "input_layernorm", "post_attention_layernorm") | {"lm_head.weight": (VOCABULARY, WIDTH)},
    llama_logits,
)
GEMMA3 = Architecture(
    _GATED
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 100.0,
        "sliding_window": 5,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 20,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    _gated_shapes(
        2, "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
        "self_attn.q_norm", "self_attn.k_norm",
    ),
    gemma3_logits,
)  # fmt: skip
GPT2 = Architecture(
    {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": HEADS,
        "n_positions": 32,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    },
    _gpt2_shapes(2),
    gpt2_logits,
)
ARCHITECTURES = {"llama": LLAMA, "gemma3": GEMMA3, "gpt2": GPT2}
