"""Softmax attention against its definition in float64, row by row in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from oracles import Case, cases, curvature, normal, slope, softmax_attention, worst

from kernels import attention

attend = jax.jit(attention, static_argnames="scale")
"""Compiled: an operation at a time takes far longer to start."""

EMPTY_ROWS = np.array([[[[True, False, True, True], [False] * 4, [True, True, False, False]]]])
"""Of three queries the second reads nothing; every key is read by some other query."""


@given(cases(masked=True))
@settings(max_examples=12, deadline=None)
def test_agrees_with_float64(case: Case) -> None:
    query, key, value = (jnp.asarray(array) for array in (case.query, case.key, case.value))
    mask = None if case.mask is None else jnp.asarray(case.mask)
    output = attend(query, key, value, mask=mask, scale=case.scale)
    truth = softmax_attention(*case.arrays(np.float64), case.mask, case.scale)
    dense = softmax_attention(*case.arrays(np.float32), case.mask, case.scale).astype(query.dtype)
    assert output.dtype == query.dtype
    assert output.shape == truth.shape
    # Two orders of summation differ in the last digits of the scores, and with them of the output.
    width = query.shape[-1]
    sizes = (np.abs(array.astype(np.float64)).max(initial=0) for array in (case.query, case.key, case.value))
    largest_query, largest_key, largest_value = sizes
    score = abs(width**-0.5 if case.scale is None else case.scale) * width * largest_query * largest_key
    floor = np.finfo(np.float32).eps * (4 + score) * largest_value
    assert worst(output, truth) <= 2 * worst(dense, truth) + floor


@pytest.mark.parametrize("query_length", [0, 1, 5])
@pytest.mark.parametrize("key_length", [0, 1, 7])
def test_any_lengths(query_length: int, key_length: int) -> None:
    query, key, value = normal(0, query_length=query_length, key_length=key_length, dtype=np.float32)
    output = attend(*map(jnp.asarray, (query, key, value)))
    assert output.shape == (2, query_length, 4, 5)
    assert worst(output, softmax_attention(query, key, value)) < 1e-6
    if key_length == 0:
        np.testing.assert_array_equal(output, 0)
    if key_length == 1 and query_length:
        np.testing.assert_array_equal(output, np.broadcast_to(value.repeat(2, axis=2), output.shape))


@pytest.mark.parametrize(("kv_heads", "scale"), [(1, None), (2, 0.3), (4, None)])
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_jax(kv_heads: int, masked: bool, scale: float | None) -> None:
    sizes = {"query_length": 5, "key_length": 7, "kv_heads": kv_heads, "width": 8, "value_width": 8}
    query, key, value = map(jnp.asarray, normal(1, **sizes, dtype=np.float32))
    mask = jnp.asarray(np.random.default_rng(1).random((2, 4, 5, 7)) < 0.6).at[..., 0].set(True) if masked else None
    theirs = jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale)
    assert worst(attend(query, key, value, mask=mask, scale=scale), np.asarray(theirs)) < 1e-6


def test_scores_are_float32_in_half_precision() -> None:
    query, key, value = normal(2, width=64, key_length=9, dtype=np.float64)
    query, key, value = (array.astype(np.float16) for array in (query * 300, key * 300, value))  # scores above 65504
    output = attend(*map(jnp.asarray, (query, key, value)), scale=1.0)
    truth = softmax_attention(*(array.astype(np.float64) for array in (query, key, value)), scale=1.0)
    assert np.abs(np.einsum("bqhw,bkhw->bqhk", query[:, :, ::2].astype(float), key.astype(float))).max() > 65504
    assert worst(output, truth) < 2e-3


def test_sums_are_float32_in_half_precision() -> None:
    # 4096 equal weights: a sum kept in bfloat16 stalls at 256, one in float16 at 2048.
    for dtype in (jnp.bfloat16, jnp.float16):
        ones = jnp.ones((1, 4096, 1, 1), dtype)
        np.testing.assert_array_equal(attend(ones[:, :1], ones, ones), 1)


# Rows with nothing to read, and what nobody reads


def test_row_with_nothing_to_read_is_zero() -> None:
    query, key, value = map(jnp.asarray, normal(3, dtype=np.float32))
    mask = jnp.asarray(EMPTY_ROWS)
    output, pull = jax.vjp(lambda *arrays: attend(*arrays, mask=mask), query, key, value)
    gradients = pull(jnp.ones_like(output))
    np.testing.assert_array_equal(output[:, 1], 0)
    np.testing.assert_array_equal(gradients[0][:, 1], 0)
    assert (np.abs(np.delete(output, 1, axis=1)) > 0).all()
    assert (np.abs(np.delete(gradients[0], 1, axis=1)) > 0).any(axis=-1).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_nothing_to_read_anywhere() -> None:
    arrays = tuple(map(jnp.asarray, normal(4, dtype=np.float32)))
    for mask in (jnp.zeros((1, 1, 1, 1), bool), jnp.zeros((2, 4, 3, 4), bool)):

        def total(*arrays: jax.Array, mask: jax.Array = mask) -> jax.Array:
            return attention(*arrays, mask=mask).sum()

        gradient = jax.grad(total, argnums=(0, 1, 2))
        everything = jax.jit(lambda *at, gradient=gradient: jax.jvp(gradient, at, at))
        np.testing.assert_array_equal(attend(*arrays, mask=mask), 0)
        leaves = jax.tree.leaves(everything(*arrays))
        assert len(leaves) == 6
        for leaf in leaves:
            np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_nobody_reads_is_not_seen(poison: float) -> None:
    query, key, value = normal(5, dtype=np.float32)
    mask = EMPTY_ROWS & np.array([True, True, True, False])  # and the last key is read by nobody
    bad_query, bad_key, bad_value = query.copy(), key.copy(), value.copy()
    bad_query[:, 1] = bad_key[:, 3] = bad_value[:, 3] = poison

    def loss(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = attention(*arrays, mask=jnp.asarray(mask))
        return (output**2).sum(), output

    @jax.jit
    def everything(*arrays: jax.Array) -> list[jax.Array]:
        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        (first, output), (second, _) = jax.jvp(gradient, arrays, tuple(map(jnp.ones_like, arrays)))
        return [output, *first, *second]

    clean, poisoned = everything(query, key, value), everything(bad_query, bad_key, bad_value)
    assert len(clean) == len(poisoned) == 7
    for want, have in zip(clean, poisoned, strict=True):
        assert np.abs(want).max() > 0
        np.testing.assert_array_equal(have, want)


def test_a_key_that_one_head_of_a_group_reads_is_seen() -> None:
    query, key, value = normal(6, query_length=1, heads=4, kv_heads=2, dtype=np.float32)
    mask = np.arange(4)[:, None, None] == np.arange(4)  # head h reads key h, and nothing else does
    output = attend(*map(jnp.asarray, (query, key, value)), mask=jnp.asarray(mask[None]))
    np.testing.assert_array_equal(output[:, 0], value[:, np.arange(4), np.arange(4) // 2])


def test_row_with_nothing_to_read_is_zero_beside_a_poisoned_key() -> None:
    query, key, value = normal(6, dtype=np.float32)
    key[:, 0] = value[:, 1] = np.nan  # read by the first and third query
    key, value, mask = jnp.asarray(key), jnp.asarray(value), jnp.asarray(EMPTY_ROWS)
    output, pull = jax.vjp(lambda query: attend(query, key, value, mask=mask), jnp.asarray(query))
    np.testing.assert_array_equal(np.isnan(output).any(axis=(0, 2, 3)), [True, False, True])
    np.testing.assert_array_equal(output[:, 1], 0)
    np.testing.assert_array_equal(pull(jnp.ones_like(output))[0][:, 1], 0)


def test_a_nan_that_is_read_is_not_hidden() -> None:
    query, key, value = normal(7, dtype=np.float32)
    for spoiled in (query, key, value):
        kept = spoiled.copy()
        spoiled[0, 0] = np.nan
        output = np.asarray(attend(*map(jnp.asarray, (query, key, value))))
        assert np.isnan(output[0, 0]).all()
        assert np.isfinite(output[1]).all()
        spoiled[:] = kept


# Derivatives


@pytest.mark.parametrize("mask", [None, EMPTY_ROWS], ids=["all", "empty row"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
def test_derivatives_are_those_of_the_definition(mask: np.ndarray | None, heads: int, kv_heads: int) -> None:
    sizes = {"heads": heads, "kv_heads": kv_heads}
    arrays, tangent, other = normal(8, **sizes), normal(9, **sizes), normal(10, **sizes)
    cotangent = np.random.default_rng(11).normal(size=softmax_attention(*arrays).shape)
    with jax.enable_x64(True):

        def ours(*arrays: jax.Array) -> jax.Array:
            return attention(*arrays, mask=None if mask is None else jnp.asarray(mask))

        def scalar(*arrays: jax.Array) -> jax.Array:
            return (ours(*arrays) * cotangent).sum()

        gradient = jax.grad(scalar, argnums=(0, 1, 2))
        forward = jax.jit(lambda *at: jax.jvp(ours, at, tangent)[1])(*arrays)
        reverse, second = jax.jit(lambda *at: jax.jvp(gradient, at, tangent))(*arrays)
        assert forward.dtype == jnp.float64
        along = sum(float((g * t).sum()) for g, t in zip(reverse, tangent, strict=True))
        across = sum(float((s * o).sum()) for s, o in zip(second, other, strict=True))

    def truth(*arrays: np.ndarray) -> np.ndarray:
        return softmax_attention(*arrays, mask)

    np.testing.assert_allclose(forward, slope(truth, arrays, tangent), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(along, (slope(truth, arrays, tangent) * cotangent).sum(), rtol=1e-6)
    np.testing.assert_allclose(across, (curvature(truth, arrays, tangent, other) * cotangent).sum(), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_gradients_in_low_precision(dtype: type) -> None:
    sizes = {"query_length": 5, "key_length": 7, "width": 8, "value_width": 8}
    arrays = normal(12, **sizes, dtype=dtype)
    mask = jnp.asarray(np.tri(5, 7, dtype=bool)[None, None])

    def gradients(function, arrays) -> tuple[jax.Array, ...]:
        def loss(*arrays: jax.Array) -> jax.Array:
            output = function(*arrays, mask=mask)
            return (output.astype(jnp.promote_types(output.dtype, jnp.float32)) ** 2).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*map(jnp.asarray, arrays))

    def dense(*arrays: jax.Array, mask: jax.Array) -> jax.Array:
        wide = (array.astype(jnp.float32) for array in arrays)
        return jax.nn.dot_product_attention(*wide, mask=mask).astype(dtype)

    with jax.enable_x64(True):
        truth = gradients(attention, [array.astype(np.float64) for array in arrays])
    ours, theirs = gradients(attention, arrays), gradients(dense, arrays)
    for have, their, want in zip(ours, theirs, truth, strict=True):
        assert have.dtype == dtype
        largest = np.abs(want).max()
        assert largest > 0.1
        assert worst(have, np.asarray(want)) <= 2 * worst(their, np.asarray(want)) + 1e-6 * largest


# Transformations


def test_jit_and_vmap_change_nothing() -> None:
    arrays = [
        jnp.asarray(np.stack(stack)) for stack in zip(*(normal(s, dtype=np.float32) for s in range(3)), strict=True)
    ]
    masks = jnp.asarray(np.random.default_rng(0).random((3, 2, 1, 3, 4)) < 0.5)

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        return (attention(query, key, value, mask=mask) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    for function in (lambda q, k, v, m: attention(q, k, v, mask=m), gradient):
        one_by_one = [function(*(array[i] for array in arrays), masks[i]) for i in range(3)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
        have = jax.jit(jax.vmap(function))(*arrays, masks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), have, stacked)


# Errors


def ones(*shape: int, dtype: type = jnp.float32) -> jax.Array:
    return jnp.ones(shape, dtype)


WELL = {"query": (2, 3, 4, 5), "key": (2, 6, 2, 5), "value": (2, 6, 2, 7)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"query": (3, 20)}, r"query must have shape \(\*batch, length, heads, width\); got \(3, 20\)"),
        ({"query": (2, 3, 20)}, r"query and key must agree in batch and width"),
        ({"value": (2, 6, 2, 7, 1)}, r"key and value must agree but for their width"),
        ({"value": (2, 5, 2, 7)}, r"key and value must agree but for their width"),
        ({"value": (2, 6, 4, 7)}, r"key and value must agree but for their width"),
        ({"query": (1, 3, 4, 5)}, r"query and key must agree in batch and width"),
        ({"query": (2, 3, 4, 6)}, r"query and key must agree in batch and width"),
        ({"query": (2, 3, 4, 0), "key": (2, 6, 2, 0)}, r"query must have a width of at least 1"),
        ({"query": (2, 3, 3, 5)}, r"query heads must be a multiple of key heads .* got 3 and 2"),
        ({"key": (2, 6, 0, 5), "value": (2, 6, 0, 7)}, r"query heads must be a multiple of key heads"),
    ],
)
def test_shapes_that_do_not_fit(wrong: dict, message: str, library_checks: None) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**{name: ones(*shape) for name, shape in (WELL | wrong).items()})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"query": jnp.int32}, "query must be floating point; got int32"),
        ({"key": jnp.bfloat16}, "key must have the query's dtype float32; got bfloat16"),
        ({"value": jnp.complex64}, "value must be floating point; got complex64"),
    ],
)
def test_dtypes_that_do_not_fit(wrong: dict, message: str, library_checks: None) -> None:
    with pytest.raises(TypeError, match=message):
        attention(**{name: ones(*shape, dtype=wrong.get(name, jnp.float32)) for name, shape in WELL.items()})


@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 3, 5), (2, 2, 3, 6), (3, 1, 1, 1), (1, 2, 4, 3, 6)])
def test_masks_that_do_not_fit(shape: tuple[int, ...], library_checks: None) -> None:
    with pytest.raises(ValueError, match=r"mask must broadcast to .* = \(2, 4, 3, 6\); got"):
        attention(**{name: ones(*shape) for name, shape in WELL.items()}, mask=jnp.ones(shape, bool))


def test_mask_that_is_a_bias(library_checks: None) -> None:
    with pytest.raises(TypeError, match="mask must be boolean; got float32"):
        attention(**{name: ones(*shape) for name, shape in WELL.items()}, mask=ones(1, 1, 3, 6))
