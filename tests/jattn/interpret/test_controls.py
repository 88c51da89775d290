"""Controls, against closed forms and exhaustive counts."""

from itertools import combinations
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jattn.interpret import overlap, paired_bootstrap, permutation_p_value, random_heads

KEY = jax.random.key(0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20 - 1), st.booleans(), st.integers(0, 100))
def test_random_heads_are_others_and_as_many(bits: int, same_layers: bool, seed: int) -> None:
    like = np.array([bits >> place & 1 for place in range(20)], bool).reshape(4, 5) & (np.arange(5) < 2)
    drawn = np.asarray(random_heads(jax.random.key(seed), jnp.asarray(like), same_layers=same_layers))
    assert not (drawn & like).any()
    assert drawn.sum() == like.sum()
    if same_layers:
        np.testing.assert_array_equal(drawn.sum(axis=1), like.sum(axis=1))


def test_random_heads_are_drawn_alike() -> None:
    like = jnp.zeros((2, 4), bool).at[0, 0].set(True)
    draws = jax.vmap(lambda key: random_heads(key, like))(jax.random.split(KEY, 3000))
    np.testing.assert_allclose(draws.mean(axis=0), [[0, 1 / 3, 1 / 3, 1 / 3], [0] * 4], atol=0.04)
    outside = jnp.zeros((2, 4), bool).at[0, 1].set(True)
    assert not random_heads(KEY, like, outside=outside)[0, 1]
    with pytest.raises(ValueError, match="like must leave as many heads outside"):
        random_heads(KEY, jnp.ones((2, 3), bool))


def test_the_bootstrap_has_the_width_of_the_normal_interval() -> None:
    one, noise = jax.random.normal(KEY, (2, 400))
    found = paired_bootstrap(KEY, one + 0.3 + 0.5 * noise, one, level=0.9)
    error = 0.5 * float(noise.std()) / 20
    assert found.mean == pytest.approx(0.3 + 0.5 * float(noise.mean()), abs=1e-5)
    assert found.high - found.low == pytest.approx(2 * 1.645 * error, rel=0.1)
    with pytest.raises(ValueError, match=r"level must be between 0 and 1; got 1.5"):
        paired_bootstrap(KEY, one, one, level=1.5)


def test_the_permutation_test_counts_what_all_permutations_would() -> None:
    values = jnp.array([0.1, 0.5, 0.9, 1.7, 2.0, 0.3, 1.1])
    labels = jnp.array([False, False, True, True, True, False, False])
    gap = 4.6 / 3 - 2.0 / 4
    gaps = []
    for chosen in combinations(range(7), 3):
        inside = float(values[list(chosen),].sum())
        gaps.append(inside / 3 - (float(values.sum()) - inside) / 4)
    exact = np.mean(np.array(gaps) >= gap - 1e-6)
    assert permutation_p_value(KEY, values, labels) == pytest.approx(exact, abs=0.01)
    with pytest.raises(ValueError, match="labels must have both kinds"):
        permutation_p_value(KEY, values, jnp.ones(7, bool))


def test_overlap_by_counting_sets() -> None:
    one, other = (np.arange(10) < 4)[None], ((np.arange(10) > 1) & (np.arange(10) < 5))[None]
    found = overlap(one, other)
    at_least = sum(comb(4, shared) * comb(6, 3 - shared) for shared in (2, 3))
    assert (found.shared, found.expected) == (2, 1.2)
    assert found.p_value == pytest.approx(at_least / comb(10, 3))


def test_overlap_in_the_same_layers_by_drawing_every_set() -> None:
    one = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    other = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1]], bool)
    drawn = [
        sum(head in (0, 1) for head in first) + (second == 0)
        for first in combinations(range(4), 2)
        for second in range(4)
    ]
    found = overlap(one, other, same_layers=True)
    assert (found.shared, found.expected) == (2, pytest.approx(np.mean(drawn)))
    assert found.p_value == pytest.approx(np.mean(np.array(drawn) >= 2))
