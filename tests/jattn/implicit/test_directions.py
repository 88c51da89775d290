"""Directions as if at random: entries, counts, and products of neighbours and streams as of coins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.implicit.directions import random_direction, random_signs, random_sizes


@pytest.mark.parametrize("size", [1, 2, 100, 4097, 100_000])
def test_signs_are_as_of_coins(size: int) -> None:
    signs, others = (np.asarray(jax.jit(random_signs, static_argnums=1)(jnp.zeros(size), each)) for each in (0, 1))
    np.testing.assert_array_equal(np.abs(signs), 1)
    bound = 5 * size**0.5
    for sums in (signs.sum(), others.sum(), signs @ others, *(signs[lag:] @ signs[:-lag] for lag in (1, 2, 8, 64))):
        assert abs(sums) <= bound
    sizes = np.asarray(random_sizes(jnp.zeros(size)))
    assert ((sizes >= 1) & (sizes < 2)).all()
    assert abs((sizes - 1.5) @ signs) <= bound
    assert abs(sizes.mean() - 1.5) <= 3 / size**0.5


def test_a_tree_has_the_signs_of_its_entries_in_a_row() -> None:
    tree = {"a": jnp.zeros((2, 3)), "b": (jnp.zeros(()), jnp.zeros(4, jnp.bfloat16), None)}
    found = random_direction(tree)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), tree
    )
    row = np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(found)])
    np.testing.assert_allclose(row, random_signs(jnp.zeros(11)) / 11**0.5, rtol=1e-2)
