"""Partial attentions merged: equal to attention over all keys at once, with its derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import normal

import kernels
from kernels import masks


def parts_of(query, key, value, cuts, **options):
    found = [
        kernels.attention(query, key[:, a:b], value[:, a:b], statistics=("lse",), **options)
        for a, b in itertools.pairwise(cuts)
    ]
    return jnp.stack([output for output, _ in found]), jnp.stack([one.lse for _, one in found])


def arrays():
    return [jnp.asarray(array) for array in normal(0, query_length=5, key_length=12, dtype=np.float32)]


def test_parts_of_the_keys() -> None:
    query, key, value = arrays()

    def merged(*given):
        return kernels.merge(*parts_of(*given, [0, 3, 4, 12]))

    def whole(*given):
        output, found = kernels.attention(*given, statistics=("lse",), implementation="reference")
        return output, found.lse

    def loss(function):
        return lambda *given: sum(jnp.sin(leaf * 2).sum() for leaf in function(*given))

    for have, want in zip(merged(query, key, value), whole(query, key, value), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    slopes = [jax.jit(jax.grad(loss(f), (0, 1, 2)))(query, key, value) for f in (merged, whole)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *slopes)
    bends = [
        jax.jit(lambda *a, f=f: jax.jvp(jax.grad(loss(f), (0, 1, 2)), a, a)[1])(query, key, value)
        for f in (merged, whole)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *bends)


def test_a_part_that_reads_nothing_counts_for_nothing() -> None:
    outputs, lses = parts_of(*arrays(), [0, 6, 12])
    silent = jnp.full_like(lses[:1], -jnp.inf), jnp.full_like(outputs[:1], jnp.nan)
    have = kernels.merge(jnp.concatenate([outputs, silent[1]]), jnp.concatenate([lses, silent[0]]))
    jax.tree.map(np.testing.assert_array_equal, have, kernels.merge(outputs, lses))
    output, lse = kernels.merge(silent[1], silent[0])
    np.testing.assert_array_equal(output, 0)
    np.testing.assert_array_equal(lse, -np.inf)


def test_gates_multiply_weights() -> None:
    query, key, value = arrays()
    gates = jnp.log(jnp.array([0.25, 2.0]))
    outputs, lses = parts_of(query, key, value, [0, 5, 12])
    have = kernels.merge(outputs, lses, jnp.broadcast_to(gates[:, None, None, None], lses.shape))[0]
    bias = jnp.where(jnp.arange(12) < 5, gates[0], gates[1])
    want = kernels.attention(query, key, value, bias=bias, implementation="reference")
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


def test_parts_that_do_not_fit(library_checks: None) -> None:
    with pytest.raises(ValueError, match="must agree in parts, batch, heads and rows"):
        kernels.merge(jnp.ones((2, 1, 3, 4, 5)), jnp.ones((2, 1, 3, 4)))
    with pytest.raises(ValueError, match="at least one part"):
        kernels.merge(jnp.ones((0, 1, 3, 4, 5)), jnp.ones((0, 1, 4, 3)))


@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_decoding(splits: int, rows: int) -> None:
    query, key, value = (
        jnp.asarray(array) for array in normal(1, batch=3, query_length=rows, key_length=32, dtype=np.float32)
    )
    lengths, sink = jnp.array([32, 7, 3]), jnp.arange(4.0)
    # What is behind the length has never been written.
    unwritten = jnp.arange(32)[None, :, None, None] >= lengths[:, None, None, None]
    have = kernels.decode(
        query,
        jnp.where(unwritten, jnp.nan, key),
        jnp.where(unwritten, jnp.nan, value),
        lengths,
        splits=splits,
        sink=sink,
    )
    for sequence, length in enumerate([32, 7, 3]):
        cut = slice(sequence, sequence + 1), slice(0, length)
        want = kernels.attention(query[cut[0]], key[cut], value[cut], mask=masks.Causal("end"), sink=sink,
                                 implementation="reference")  # fmt: skip
        np.testing.assert_allclose(have[cut[0]], want, rtol=1e-5, atol=1e-6)


def test_splits_that_do_not_divide() -> None:
    query, key, value = (jnp.asarray(array) for array in normal(1, dtype=np.float32))
    with pytest.raises(ValueError, match="splits must divide the cache's 4 keys; got 3"):
        kernels.decode(query, key, value, jnp.array([1, 2]), splits=3)
