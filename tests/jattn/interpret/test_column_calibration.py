"""Calibrated attention, read weight by weight (values are unit vectors), against the dense form and what must hold."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
from jattn.interpret import CalibrateColumns, CalibrateSinks, DropColumns, mean_column_weights

# The tiled form is compared with the dense one in test_capture; this one compiles sooner.
ATTENTION = partial(kernels.attention, implementation="reference")
LENGTH, HEADS, KV_HEADS = 10, 4, 2
CAUSAL = kernels.masks.Causal("start")
QUERY = 2 * jax.random.normal(jax.random.key(0), (2, LENGTH, HEADS, 8))
KEY = 2 * jax.random.normal(jax.random.key(1), (2, LENGTH, KV_HEADS, 8))
COLUMNS = np.zeros((2, HEADS, LENGTH), bool)
COLUMNS[:, 0, [2, 5]] = COLUMNS[1, 2, 7] = COLUMNS[0, 3, 1:] = True


def weights_of(change=None, query=QUERY, key=KEY) -> np.ndarray:
    """(batch, heads, queries, keys), of attention as changed."""
    return np.moveaxis(np.asarray(compiled(change, query, key), np.float64), 2, 1)


@jax.jit
def compiled(change, query, key):
    attention = ATTENTION if change is None else change(ATTENTION)
    values = jnp.broadcast_to(jnp.eye(key.shape[1])[:, None], (*key.shape[:3], key.shape[1])).astype(key.dtype)
    return attention(query, key, values, mask=CAUSAL)


def calibrated(weights, columns, factor):
    """The paper's form, row by row: what is freed goes to the others by their shares; at most all to the columns."""
    columns = np.broadcast_to(columns[..., None, :], weights.shape)
    mass = (weights * columns).sum(axis=-1, keepdims=True)
    others = (weights * ~columns).sum(axis=-1, keepdims=True)  # rather than 1 - mass, which may be all rounding
    factor = np.minimum(factor, 1 / np.where(mass > 0, mass, 1))
    rest = weights * (1 - factor * mass) / np.where(others > 0, others, 1)
    return np.where(others == 0, weights, np.where(columns, factor * weights, rest))


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return weights_of()


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.6, 50.0])
def test_rows_stay_weights_and_others_keep_their_shares(weights, factor) -> None:
    found = weights_of(CalibrateColumns(jnp.asarray(COLUMNS), factor))
    np.testing.assert_allclose(found, calibrated(weights, COLUMNS, factor), atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)
    assert (found >= 0).all()
    assert not np.triu(found, 1).any()
    np.testing.assert_allclose(found[:, :, 0, 0], 1, atol=1e-6)
    if factor <= 1:
        assert (found[..., 0] >= weights[..., 0] - 1e-6).all()
        # Of two keys that are no sinks, in head 0: the ratio is what it was.
        np.testing.assert_allclose(
            found[:, 0, 4:, 3] * weights[:, 0, 4:, 4], found[:, 0, 4:, 4] * weights[:, 0, 4:, 3], atol=1e-6
        )


def test_no_columns_and_a_factor_of_one_change_nothing(weights) -> None:
    for change in (CalibrateColumns(jnp.zeros_like(COLUMNS)), CalibrateColumns(jnp.asarray(COLUMNS), 1.0)):
        np.testing.assert_allclose(weights_of(change), weights, atol=1e-6)
    np.testing.assert_allclose(weights_of(CalibrateSinks(jnp.zeros(HEADS, bool), 0.0)), weights, atol=1e-6)


def test_a_factor_of_zero_is_columns_masked_before_softmax() -> None:
    columns = jnp.asarray(COLUMNS)
    np.testing.assert_allclose(weights_of(CalibrateColumns(columns, 0.0)), weights_of(DropColumns(columns)), atol=1e-6)


def test_half_precision_agrees(weights) -> None:
    query, key = (each.astype(jnp.bfloat16) for each in (QUERY, KEY))
    found = weights_of(CalibrateColumns(jnp.asarray(COLUMNS)), query, key)
    want = calibrated(weights_of(None, *(each.astype(jnp.float32) for each in (query, key))), COLUMNS, 0.4)
    np.testing.assert_allclose(found, want, atol=1e-2)


def test_a_planted_sink_is_found_and_heads_are_each_texts_own() -> None:
    """Every row puts 0.3 on key 4 and spreads the rest alike over the keys before it and itself."""
    places = np.arange(LENGTH)
    seen = places[None] <= places[:, None]
    planted = seen & (places == 4)
    others = (seen & ~planted).sum(axis=-1, keepdims=True)
    rows = np.where(planted, 0.3, np.where(seen, np.where(seen[:, 4:5], 0.7, 1.0) / others, 1e-30))
    query = jnp.broadcast_to(jnp.log(rows)[None, :, None] * LENGTH**0.5, (2, LENGTH, HEADS, LENGTH))
    key = jnp.broadcast_to(jnp.eye(LENGTH)[:, None], (2, LENGTH, KV_HEADS, LENGTH))
    weights = weights_of(None, query, key)
    np.testing.assert_allclose(weights[0, 0], rows, atol=1e-6)
    heads = np.array([[True, False, True, True], [False, True, True, False]])
    found = weights_of(CalibrateSinks(jnp.asarray(heads), 0.29, spare=1), query, key)
    want = calibrated(weights, heads[..., None] & (places == 4), 0.4)
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_padding_changes_no_score_and_no_row_before_it(relative) -> None:
    lengths = jnp.array([6, 9])
    heads = jnp.ones(HEADS, bool)
    threshold = 1.0 if relative else 0.12
    padded = weights_of(CalibrateSinks(heads, threshold, lengths=lengths, relative=relative))
    sums = np.where((np.arange(LENGTH) < lengths[:, None])[:, None, :, None], weights_of(), 0).sum(axis=2)
    scores = mean_column_weights(jnp.asarray(sums), LENGTH, lengths)
    for text, length in enumerate(lengths.tolist()):
        one = (QUERY[text : text + 1, :length], KEY[text : text + 1, :length])
        alone = weights_of(CalibrateSinks(heads, threshold, relative=relative), *one)
        np.testing.assert_allclose(padded[text, :, :length, :length], alone[0], atol=1e-5)
        assert np.abs(alone - weights_of(None, *one)).max() > 0.01
        want = weights_of(None, *one).sum(axis=2) / (length - np.arange(length))
        np.testing.assert_allclose(scores[text, :, :length], want[0], atol=1e-5)
        np.testing.assert_array_equal(scores[text, :, length:], 0)


def test_gradients_are_finite_where_sinks_are_all_a_row_reads() -> None:
    def total(query):
        attention = CalibrateSinks(jnp.ones(HEADS, bool), 0.0, spare=0)(ATTENTION)  # every key is a sink
        return (attention(query, KEY, KEY, mask=CAUSAL) ** 2).sum()

    def plain(query):
        return (ATTENTION(query, KEY, KEY, mask=CAUSAL) ** 2).sum()

    value, slope = jax.jit(jax.value_and_grad(total))(QUERY)
    want, want_slope = jax.jit(jax.value_and_grad(plain))(QUERY)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(slope, want_slope, atol=1e-4)
