"""A small random BERT, read from files, against its definition in float64; sentences as vectors; its sites."""

import json
from math import erf

import jax.numpy as jnp
import numpy as np
import pytest
from decoders_in_numpy import layer_norm
from flax import nnx
from safetensors.numpy import save_file

import kernels
from jattn.interpret import Scale, capture, edit
from jattn.models.encoder import Encoder, EncoderConfig
from jattn.pretrained.load import load_model

VOCABULARY, WIDTH, LAYERS, HEADS, HIDDEN, POSITIONS = 41, 24, 2, 3, 40, 16
CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
LENGTHS = np.array([9, 5])
INSIDE = np.arange(9) < LENGTHS[:, None]
TOKENS = np.where(INSIDE, np.random.default_rng(1).integers(0, VOCABULARY, (2, 9)), 0)


def draw() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "pooler.dense.weight": (WIDTH, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        norms += [f"{name}attention.output.LayerNorm", f"{name}output.LayerNorm"]
        for part, outputs, inputs in (
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", HIDDEN, WIDTH),
            ("output.dense", WIDTH, HIDDEN),
        ):
            shapes |= {f"{name}{part}.weight": (outputs, inputs), f"{name}{part}.bias": (outputs,)}
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    rng = np.random.default_rng(0)
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def features_of(tensors: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Of one text without padding."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"], 1e-12)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2

    embedded = t["embeddings.word_embeddings.weight"][tokens]
    embedded = embedded + t["embeddings.position_embeddings.weight"][: len(tokens)]
    x = normed(embedded + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        parts = [linear(x, f"{name}attention.self.{part}") for part in ("query", "key", "value")]
        read = []
        for query, key, value in zip(*(np.split(part, HEADS, axis=1) for part in parts), strict=True):
            weights = np.exp(query @ key.T * (WIDTH // HEADS) ** -0.5)
            read.append(weights / weights.sum(axis=1, keepdims=True) @ value)
        added = linear(np.concatenate(read, axis=1), f"{name}attention.output.dense")
        x = normed(x + added, f"{name}attention.output.LayerNorm")
        added = linear(gelu(linear(x, f"{name}intermediate.dense")), f"{name}output.dense")
        x = normed(x + added, f"{name}output.LayerNorm")
    return x


@pytest.fixture(scope="module")
def model_and_tensors(tmp_path_factory) -> tuple[Encoder, dict[str, np.ndarray]]:
    folder, tensors = tmp_path_factory.mktemp("bert"), draw()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return load_model(folder / "model.safetensors", folder / "config.json"), tensors


def test_features_and_sentences_are_those_of_the_definition(model_and_tensors) -> None:
    model, tensors = model_and_tensors

    @nnx.jit
    def compiled(model, tokens, lengths):
        return model(tokens, lengths), model.embed_sentences(tokens, lengths)

    found, sentences = compiled(model, jnp.asarray(TOKENS), jnp.asarray(LENGTHS))
    for text, length, features, sentence in zip(TOKENS, LENGTHS, found, sentences, strict=True):
        expected = features_of(tensors, text[:length])
        np.testing.assert_allclose(features[:length], expected, atol=2e-5)
        mean = expected.mean(axis=0)
        np.testing.assert_allclose(sentence, mean / np.linalg.norm(mean), atol=1e-5)


def test_sites_show_and_change_what_every_layer_does(model_and_tensors) -> None:
    model, _ = model_and_tensors
    sites = ("embedding", "layers.*.residual", "layers.1.attention.weights", "layers.*.head_output", "residual")

    @nnx.jit
    def look(model, tokens, lengths, factor):
        told = {"layers.1.attention.statistics": ("entropy", kernels.ColumnSums())}
        seen = capture(model, tokens, lengths, sites=sites, statistics=told).sites
        silent = [edit(f"layers.{layer}.{part}.output", Scale(factor)) for layer in (0, 1)
                  for part in ("attention", "feed_forward")]  # fmt: skip
        return seen, capture(model, tokens, lengths, edits=silent).output

    seen, silenced = look(model, jnp.asarray(TOKENS), jnp.asarray(LENGTHS), jnp.float32(0))
    weights = np.asarray(seen["layers.1.attention.weights"])
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert (weights[1, :, :, LENGTHS[1] :] == 0).all()
    found = seen["layers.1.attention.statistics"]
    np.testing.assert_allclose(found.column_sums, weights.sum(axis=2), atol=1e-5)
    assert seen["layers.0.attention.head_output"].shape == (2, 9, HEADS, WIDTH // HEADS)
    # Without what layers add, nothing but four norms is left of the embedding.
    expected = np.asarray(seen["embedding"], np.float64)
    for block in model.blocks:
        for norm in (block.attention_norm, block.feed_forward_norm):
            expected = layer_norm(expected, np.asarray(norm.scale[...]), np.asarray(norm.bias[...]), 1e-12)
    np.testing.assert_allclose(silenced, expected, atol=2e-5)


def test_too_long_a_text_is_refused() -> None:
    model = nnx.eval_shape(lambda: Encoder(EncoderConfig(5, 8, 1, 2, 8, positions=4), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="must fit the model's 4 positions; got 5"):
        model(jnp.zeros((1, 5), int))
