"""The vision transformer: patches and logits against numpy in float64, its sites, and attention that is exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf, softmax

from jattn.interpret import Set, capture, edit
from jattn.mechanisms import MixtureOfHeadsAttention
from jattn.models.vision_transformer import VisionTransformer, VisionTransformerConfig, cut_patches

SIZES = dict(image=6, patch=2, channels=3, width=16, layers=2, heads=4, hidden=24, classes=5)


def mixture(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> MixtureOfHeadsAttention:
    return MixtureOfHeadsAttention(width, heads, shared=1, top_k=1, base=None, causal=False, rngs=rngs)


def images(size: int = 6) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (3, size, size, 3))


def test_patches_are_the_squares_of_the_image() -> None:
    shown = np.asarray(images())
    found = np.asarray(cut_patches(images(), 2))
    assert found.shape == (3, 9, 12)
    for patch in range(9):
        row, column = 2 * (patch // 3), 2 * (patch % 3)
        np.testing.assert_array_equal(found[:, patch], shown[:, row : row + 2, column : column + 2].reshape(3, -1))


def logits_by_formula(model: VisionTransformer, shown: jax.Array) -> np.ndarray:
    """In float64, from the model's numbers alone."""

    def dense(layer: nnx.Linear, features: np.ndarray) -> np.ndarray:
        return features @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)

    def norm(layer: nnx.LayerNorm, features: np.ndarray) -> np.ndarray:
        centred = features - features.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return normed * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])

    features = dense(model.embedding, np.asarray(cut_patches(shown, 2), np.float64)) + np.asarray(model.positions[...])
    for block in model.blocks:
        normed, read = norm(block.attention_norm, features), []
        query, key, value = (dense(getattr(block.attention, name), normed) for name in ("query", "key", "value"))
        for head in range(4):
            of = slice(4 * head, 4 * head + 4)
            weights = softmax(query[..., of] @ key[..., of].swapaxes(1, 2) / 2, axis=-1)
            read.append(weights @ value[..., of])
        features = features + dense(block.attention.output, np.concatenate(read, axis=-1))
        inner = dense(block.feed_forward.inner, norm(block.feed_forward_norm, features))
        tanh = np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3))
        assert np.abs(tanh - erf(inner / np.sqrt(2))).max() < 1e-2  # JAX's GELU is this approximation by default
        features = features + dense(block.feed_forward.outer, 0.5 * inner * (1 + tanh))
    return dense(model.logits, norm(model.norm, features).mean(axis=1))


def test_logits_are_the_formulas() -> None:
    model = VisionTransformer(VisionTransformerConfig(**SIZES), rngs=nnx.Rngs(0))
    parameters = nnx.state(model, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(3), 100))
    nnx.update(model, jax.tree.map(lambda each: each + 0.2 * jax.random.normal(next(keys), each.shape), parameters))
    found = nnx.jit(lambda model, shown: model(shown))(model, images())
    np.testing.assert_allclose(found, logits_by_formula(model, images()), atol=2e-5)


def test_attention_is_exchanged_and_its_heads_are_sites() -> None:
    model = VisionTransformer(VisionTransformerConfig(**SIZES, attention=mixture), rngs=nnx.Rngs(0))
    told = capture(model, images(), sites=["layers.*.attention.head_output"])
    assert {each.shape for each in told.sites.values()} == {(3, 9, 4, 4)}
    assert sum(np.all(np.asarray(each) == 0, axis=-1).sum() for each in told.sites.values()) == 2 * 3 * 9 * 2
    silent = capture(model, images(), edits=[edit("layers.1.attention.head_output", Set(0.0))]).output
    assert np.abs(silent - told.output).max() > 1e-4


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="patch must divide the image's 6 pixels; got 4"):
        VisionTransformerConfig(**{**SIZES, "patch": 4})
    model = VisionTransformer(VisionTransformerConfig(**SIZES), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"images must have the shape \(batch, 6, 6, 3\); got \(3, 8, 8, 3\)"):
        model(jnp.asarray(images(8)))
