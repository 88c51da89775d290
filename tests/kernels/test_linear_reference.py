"""Linear attention against its definition in float64, row by row in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from oracles import Case, cases, curvature, normal, slope, worst
from oracles import linear_attention as definition

from kernels import linear_attention

attend = jax.jit(linear_attention, static_argnames="scale")
"""Compiled: an operation at a time takes far longer to start."""


@given(cases(masked=False))
@settings(max_examples=20, deadline=None)
def test_agrees_with_float64(case: Case) -> None:
    arrays = [jnp.asarray(array) for array in (case.query, case.key, case.value)]
    output = attend(*arrays, scale=case.scale)
    truth = definition(*case.arrays(np.float64), case.scale)
    dense = definition(*case.arrays(np.float32), case.scale).astype(output.dtype)
    assert output.dtype == arrays[0].dtype
    assert output.shape == truth.shape
    # Terms may cancel, so the rounding error is that of the sum of their sizes.
    terms = definition(*map(np.abs, case.arrays(np.float64)), case.scale and abs(case.scale))
    floor = 4 * np.finfo(np.float32).eps * np.max(terms, initial=0)
    assert worst(output, truth) <= 2 * worst(dense, truth) + floor


def test_is_attention_without_the_softmax() -> None:
    query, key, value = map(jnp.asarray, normal(0, kv_heads=4, dtype=np.float32))
    scores = jnp.einsum("bqhw,bkhw->bhqk", query, key) * 3**-0.5
    expected = jnp.einsum("bhqk,bkhv->bqhv", scores, value)
    np.testing.assert_allclose(attend(query, key, value), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("query_length", [0, 1, 5])
@pytest.mark.parametrize("key_length", [0, 1, 7])
def test_any_lengths(query_length: int, key_length: int) -> None:
    arrays = normal(1, query_length=query_length, key_length=key_length, dtype=np.float32)
    output = attend(*map(jnp.asarray, arrays))
    assert output.shape == (2, query_length, 4, 5)
    assert worst(output, definition(*arrays)) < 1e-5
    if key_length == 0:
        np.testing.assert_array_equal(output, 0)


def test_sums_are_float32_in_half_precision() -> None:
    # A sum of ones kept in bfloat16 stalls at 256, one in float16 at 2048.
    for dtype in (jnp.bfloat16, jnp.float16):
        ones = jnp.ones((1, 4096, 1, 1), dtype)
        np.testing.assert_array_equal(attend(ones[:, :1], ones, ones), 4096)
    # The state of keys and values may exceed float16 although the output does not.
    query, key, value = (jnp.full((1, 1, 1, 1), x, jnp.float16) for x in (1e-3, 1e3, 1e3))
    np.testing.assert_allclose(attend(query, key, value).astype(float), 1000, rtol=2e-3)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
def test_derivatives_are_those_of_the_definition(heads: int, kv_heads: int) -> None:
    sizes = {"heads": heads, "kv_heads": kv_heads}
    arrays, tangent, other = normal(2, **sizes), normal(3, **sizes), normal(4, **sizes)
    cotangent = np.random.default_rng(5).normal(size=definition(*arrays).shape)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda *at: (linear_attention(*at) * cotangent).sum(), argnums=(0, 1, 2))
        forward = jax.jit(lambda *at: jax.jvp(linear_attention, at, tangent)[1])(*arrays)
        reverse, second = jax.jit(lambda *at: jax.jvp(gradient, at, tangent))(*arrays)
        assert forward.dtype == jnp.float64
        along = sum(float((g * t).sum()) for g, t in zip(reverse, tangent, strict=True))
        across = sum(float((s * o).sum()) for s, o in zip(second, other, strict=True))
    np.testing.assert_allclose(forward, slope(definition, arrays, tangent), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(along, (slope(definition, arrays, tangent) * cotangent).sum(), rtol=1e-6)
    np.testing.assert_allclose(across, (curvature(definition, arrays, tangent, other) * cotangent).sum(), rtol=1e-4)


def test_jit_and_vmap_change_nothing() -> None:
    stacks = zip(*(normal(seed, dtype=np.float32) for seed in range(3)), strict=True)
    arrays = [jnp.asarray(np.stack(stack)) for stack in stacks]
    gradient = jax.jit(jax.grad(lambda *at: (linear_attention(*at) ** 2).sum(), argnums=(0, 1, 2)))
    for function in (linear_attention, gradient):
        one_by_one = [function(*(array[i] for array in arrays)) for i in range(3)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
        have = jax.jit(jax.vmap(function))(*arrays)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), have, stacked)


@pytest.fixture
def library_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a wrong argument to the library's own checks, as it is outside the tests."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 4, 5), (2, 6), (2, 6, 2, 7)), "key must have shape"),
        (((2, 3, 4, 5), (2, 6, 2, 5), (2, 6, 1, 7)), "key and value must agree"),
        (((2, 3, 4, 5), (2, 6, 2, 4), (2, 6, 2, 7)), "query and key must agree"),
        (((2, 3, 5, 5), (2, 6, 2, 5), (2, 6, 2, 7)), "query heads must be a multiple"),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple, message: str, library_checks: None) -> None:
    with pytest.raises(ValueError, match=message):
        linear_attention(*map(jnp.ones, shapes))


def test_dtypes_that_do_not_fit(library_checks: None) -> None:
    array = jnp.ones((1, 1, 1, 1))
    with pytest.raises(TypeError, match="key must have the query's dtype float32; got float16"):
        linear_attention(array, array.astype(jnp.float16), array)
