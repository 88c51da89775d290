"""Gated linear attention: its decays, against its formula written out, and what it must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.mechanisms import GatedLinearAttention, alibi_slopes, decay_by_layer, decay_of_paper

WIDTH, HEADS = 16, 4


def layer(**options) -> GatedLinearAttention:
    decay = options.pop("log_decay", decay_by_layer(HEADS, 1, 4))
    return GatedLinearAttention(WIDTH, HEADS, log_decay=decay, rngs=nnx.Rngs(0), **options)


def inputs(length: int = 21) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, length, WIDTH))


def by_formula(module: GatedLinearAttention, features: np.ndarray, positions: bool) -> np.ndarray:
    """Pair by pair in float64: the sum over earlier tokens, decayed, normed, gated."""
    x = np.asarray(features, np.float64)
    weights = np.asarray(module.inner.kernel[...], np.float64)
    batch, length, width = x.shape
    dim = width // HEADS
    query, key, value, gate = np.split(x @ weights, 4, axis=-1)
    silu = lambda a: a / (1 + np.exp(-a))  # noqa: E731
    query, key = (silu(a).reshape(batch, length, HEADS, dim) for a in (query, key))
    value = value.reshape(batch, length, HEADS, dim)
    decay = np.asarray(module.log_decay[...], np.float64)
    angles = np.asarray(module.angles[...], np.float64) if positions else np.zeros((HEADS, dim))
    read = np.zeros((batch, length, HEADS, dim))
    for i in range(length):
        for j in range(i + 1):
            turned = np.cos(angles * (i - j))
            scores = (query[:, i] * key[:, j] * turned).sum(-1) * np.exp(decay * (i - j))
            read[:, i] += scores[..., None] * value[:, j]
    read = read.reshape(batch, length, width)
    read = read / np.sqrt((read**2).mean(-1, keepdims=True)) * gate
    return read @ np.asarray(module.outer.kernel[...], np.float64)


@pytest.mark.parametrize("positions", [False, True])
def test_is_the_formula(positions: bool) -> None:
    module = layer(positions=positions)
    output, _ = module(inputs())
    np.testing.assert_allclose(output, by_formula(module, inputs(), positions), atol=2e-4)


def test_decays_of_code_and_paper() -> None:
    """For 8 heads and 24 layers, from the formulas; slopes 1/2 to 1/256 as in ALiBi."""
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-h for h in range(1, 9)])
    # For 12 heads: those of 8, then the odd ones of 16.
    expected = [2.0**-h for h in range(1, 9)] + [2.0 ** (-h / 2) for h in (1, 3, 5, 7)]
    np.testing.assert_allclose(alibi_slopes(12), expected, rtol=1e-6)
    for index in (0, 7, 23):
        slopes = np.array([2.0**-h for h in range(1, 9)])
        np.testing.assert_allclose(decay_by_layer(8, index, 24), -slopes * (1 - index / 23 + 1e-5), rtol=1e-4)
        np.testing.assert_allclose(decay_of_paper(8, index, 24), -np.arange(1.0, 9) * (1 - index / 24), rtol=1e-6)
    assert np.exp(decay_by_layer(8, 23, 24)).min() > 0.99999
    for table in (decay_by_layer, decay_of_paper):
        with pytest.raises(ValueError, match="layer must be from 0 to 23"):
            table(8, 24, 24)


def test_only_differences_of_positions_count() -> None:
    module = layer(positions=True)
    here, _ = module(inputs(), positions=jnp.arange(21))
    there, _ = module(inputs(), positions=jnp.arange(21) + 57)
    np.testing.assert_allclose(here, there, atol=1e-4)


def test_heads_decay_apart() -> None:
    """What one head forgets does not change what another reads, before the output mixes them."""
    module = layer(gate=False)
    other = layer(gate=False, log_decay=module.log_decay[...].at[0].set(-3.0))
    _, state = module(inputs())
    _, changed = other(inputs())
    np.testing.assert_array_equal(state.memory[:, 1:], changed.memory[:, 1:])
    assert np.abs(state.memory[:, 0] - changed.memory[:, 0]).max() > 1e-2


def test_padding_before_the_text_counts_for_nothing() -> None:
    module = layer(positions=True)
    text = inputs(15)
    noise = 100 * jax.random.normal(jax.random.key(2), (2, 6, WIDTH))
    padded = jnp.concatenate([noise, text], axis=1)
    output, state = module(padded, padding=jnp.arange(21)[None] < jnp.full((2, 1), 6))
    want, want_state = module(text, positions=jnp.arange(15) + 6)
    np.testing.assert_allclose(output[:, 6:], want, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state, want_state)


def test_no_gradient_reaches_the_decay() -> None:
    module = layer()
    graph, state = nnx.split(module)
    slopes = jax.grad(lambda state: (nnx.merge(graph, state)(inputs())[0] ** 2).sum())(state)
    np.testing.assert_array_equal(slopes.log_decay[...], 0)
    assert np.abs(slopes.inner.kernel[...]).max() > 0


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="heads must divide the width of 16; got 3"):
        GatedLinearAttention(16, 3, log_decay=None, rngs=nnx.Rngs(0))
