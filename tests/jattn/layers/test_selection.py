"""Choosing, pooling, gathering and clustering, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jattn.layers.centroids import Centroids
from jattn.layers.selection import (
    balance_loss,
    gather_tokens,
    pool_blocks,
    scatter_mean,
    straight_through,
    top_k_gates,
    top_k_mask,
)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
@settings(max_examples=25, deadline=None)
def test_exactly_k_are_chosen_and_none_left_out_is_higher(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    chosen = np.asarray(top_k_mask(jnp.asarray(values, jnp.float32), k))
    assert chosen.sum() == k
    kept, left = np.asarray(values)[chosen], np.asarray(values)[~chosen]
    assert not len(kept) or not len(left) or kept.min() >= left.max()


def test_gates() -> None:
    logits = jnp.array([[0.0, 2.0, 1.0, -1.0]])
    soft = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(top_k_gates(logits, 2), np.where([[0, 1, 1, 0]], soft, 0), rtol=1e-6)
    np.testing.assert_allclose(top_k_gates(logits, 2, renormalise=True).sum(), 1, rtol=1e-6)
    np.testing.assert_array_equal(top_k_gates(logits, 2, quantise=True), [[0, 1, 1, 0]])
    np.testing.assert_array_equal(top_k_gates(logits, 0, renormalise=True), np.zeros((1, 4)))
    plain, through = (jax.grad(lambda x, q=q: top_k_gates(x, 2, quantise=q)[0, 1])(logits) for q in (False, True))
    np.testing.assert_allclose(through, plain)
    np.testing.assert_allclose(plain[0], soft[0, 1] * (np.eye(4)[1] - soft[0]), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: straight_through(jnp.round(x), x**2))(1.3), 2.6, rtol=1e-6)
    with pytest.raises(ValueError, match="k must be from 0 to the 4 choices; got 5"):
        top_k_mask(logits, 5)


def test_balance() -> None:
    """Even use costs the number of choices a token makes; all on one, with all probability, costs the most."""
    even = jnp.full((6, 3), 1 / 3)
    turns = jax.nn.one_hot(jnp.arange(6) % 3, 3, dtype=bool)
    np.testing.assert_allclose(balance_loss(even, turns), 1, rtol=1e-6)
    one = jnp.tile(jnp.array([[1.0, 0, 0]]), (6, 1))
    np.testing.assert_allclose(balance_loss(one, one > 0), 3, rtol=1e-6)
    slope = jax.grad(lambda p: balance_loss(p, turns))(even)
    np.testing.assert_allclose(slope, 3 * (1 / 3) / 6 * np.ones((6, 3)), rtol=1e-6)


def test_blocks_are_pooled_with_what_they_have() -> None:
    tokens = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    want = np.stack([tokens[:, :3].mean(1), tokens[:, 3:6].mean(1), tokens[:, 6:].mean(1)], 1)
    np.testing.assert_allclose(pool_blocks(jnp.asarray(tokens), 3), want, rtol=1e-5)


def test_gathered_and_scattered() -> None:
    rng = np.random.default_rng(0)
    tokens, indices = rng.normal(size=(2, 9, 3)).astype(np.float32), rng.integers(0, 8, (2, 4, 3))
    lists = gather_tokens(jnp.asarray(tokens), jnp.asarray(indices))
    np.testing.assert_array_equal(lists, np.stack([tokens[b][indices[b]] for b in range(2)]))
    back = np.asarray(scatter_mean(lists, jnp.asarray(indices), 9))
    for b, token in np.ndindex(2, 9):
        # The mean of copies of a token is the token; one in no list, as the last, gives 0.
        np.testing.assert_allclose(back[b, token], tokens[b, token] * (token in indices[b]), rtol=1e-5)
    more = np.asarray(scatter_mean(lists, jnp.asarray(indices), 9, more=0.5))
    count = (indices[0] == indices[0, 0, 0]).sum()
    np.testing.assert_allclose(more[0, indices[0, 0, 0]], back[0, indices[0, 0, 0]] * count / (count + 0.5), rtol=1e-5)


def test_centroids_find_the_means_of_clusters() -> None:
    """From a bad start to the directions of three clusters, and there they stay; no gradient reaches them."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(6, 6)))[0][:3] * 6**0.5
    vectors = np.repeat(directions, 50, 0) + 0.1 * rng.normal(size=(150, 6))
    vectors = jnp.asarray(vectors * 6**0.5 / np.linalg.norm(vectors, axis=-1, keepdims=True), jnp.float32)
    state = Centroids.of(jnp.asarray(directions + 0.8 * rng.normal(size=(3, 6)), jnp.float32))
    before = state.commitment(vectors)
    for _ in range(200):
        state = state.update(vectors, 0.95)
    assert state.commitment(vectors) < 0.2 < before
    means = np.stack([np.asarray(vectors)[i * 50 : (i + 1) * 50].mean(0) for i in range(3)])
    np.testing.assert_allclose(state.total / state.count[:, None], means, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(state.places, axis=-1), 6**0.5, rtol=1e-5)
    pull = jax.grad(lambda v: state.commitment(v))(vectors)
    np.testing.assert_allclose(pull, 2 * (vectors - state.places[state.nearest(vectors)]) / 150, rtol=1e-3, atol=1e-6)
    slope = jax.grad(lambda v: state.update(v, 0.5).total.sum())(vectors)
    np.testing.assert_array_equal(slope, 0)
    with pytest.raises(ValueError, match="decay must be from 0 to 1"):
        state.update(vectors, 1.5)
