"""Masks: the examples of their docstrings, their algebra, and what they say of tiles against every pair."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import masks
from kernels.masks.algebra import Tiling, dense
from kernels.masks.positions import Causal, keys_in_reach
from kernels.shapes import Grid

GRID = Grid((2,), 2, 1, 19, 27)


@pytest.mark.parametrize(("room", "masks_there"), [("algebra", 3), ("positions", 6), ("arrays", 4), ("block_table", 1)])
def test_examples(room: str, masks_there: int) -> None:
    module = importlib.import_module(f"kernels.masks.{room}")
    names = {name: getattr(masks, name) for name in masks.__all__} | {"jnp": jnp}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted >= masks_there
    assert result.failed == 0


def simple(rng: np.random.Generator) -> masks.Mask:
    """One condition of any kind."""
    align = ["start", "end", 3, -7, np.array([4, -2])][rng.integers(5)]
    left, right = ([None, *range(10)][rng.integers(11)] for _ in range(2))
    match rng.integers(11):
        case 0:
            return masks.Causal(align)
        case 1:
            return masks.Window(left, right, align)
        case 2:
            return masks.Prefix(rng.integers(0, 30, 2))
        case 3:
            return masks.Lengths(keys=rng.integers(0, 30, 2), queries=left)
        case 4:
            return masks.Segments(np.sort(rng.integers(0, 4, (2, 19))), rng.integers(0, 4, (2, 27)))
        case 5:
            return masks.Blocks(rng.random((1, 2, 4, 6)) < 0.5, rows=5, columns=5)
        case 6:
            return masks.Dense(rng.random((2, 1, 19, 27)) < [0.01, 0.5, 0.99][rng.integers(3)])
        case 7:
            counts = rng.integers(0, 4, (2, 4))
            return masks.BlockTable(rng.integers(-1, 5, (2, 4, 3)), counts, rows=5, columns=7)
        case 8:
            of_positions = [masks.Causal(align), masks.Window(left, right, align), ~masks.Prefix(9)][rng.integers(3)]
            return masks.At(of_positions, rng.integers(0, 40, (2, 19)), rng.integers(0, 40, 27))
        case 9:
            return masks.Local(int(rng.integers(1, 9)), int(rng.integers(0, 9)), align)
        case _:
            return masks.Where(lambda i, j, t: (i // 6 + j // 6 + t[0]) % 2 == 0, (rng.integers(0, 2, 1),))


def any_mask(seed: int) -> masks.Mask:
    """Up to three conditions, combined."""
    rng = np.random.default_rng(seed)
    mask = simple(rng)
    for _ in range(rng.integers(3)):
        other = simple(rng)
        mask = [mask & other, mask | other, ~mask][rng.integers(3)]
    return mask


seeds = st.integers(0, 2**32 - 1)


def as_array(mask: masks.Mask) -> np.ndarray:
    values = dense(mask.on(GRID), GRID.rows, GRID.columns)
    return np.broadcast_to(values, (*GRID.problems, GRID.rows, GRID.columns))


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_keys_in_reach_hold_all_that_a_query_reads(seed: int) -> None:
    rng = np.random.default_rng(seed)
    near = masks.Window(int(rng.integers(9)), int(rng.integers(9)), "start")
    blocks = masks.Local(int(rng.integers(1, 9)), int(rng.integers(9)), "end")
    other = masks.Dense(rng.random((2, 1, 19, 27)) < 0.9)
    placed = rng.integers(0, 40, 27)
    mask = [near, blocks, near & blocks, other & near, masks.At(near, rng.integers(0, 40, 19), placed)][seed % 5]
    read, at = as_array(mask), placed if isinstance(mask, masks.At) else np.arange(27)
    spans = np.where(read, at, -1).max(axis=-1) - np.where(read, at, 99).min(axis=-1) + 1
    reach = keys_in_reach(mask)
    assert reach is not None
    assert spans.max() <= reach


def test_keys_in_reach_are_known_of_windows_and_no_more_than_needed() -> None:
    for mask, reach in (
        (masks.Window(3, 2, "start"), 6),
        (masks.Local(4, 3, "end"), 7),
        (masks.Causal("start") & masks.Window(3, 0, "start"), 4),
        (masks.At(masks.Window(3, 2, "start"), np.arange(4), np.arange(4)), 6),
        (masks.Window(3, None, "start"), None),
        (masks.Window(3, 2, "start") | masks.Prefix(1), None),
        (None, None),
    ):
        assert keys_in_reach(mask) == reach


@given(seeds, st.sampled_from([(4, 4), (8, 5), (16, 32)]))
@settings(max_examples=20, deadline=None)
def test_coverage_is_never_wrong(seed: int, tile: tuple[int, int]) -> None:
    mask = any_mask(seed)
    tiling = Tiling(GRID.rows, GRID.columns, *tile)
    some, every = mask.on(GRID).coverage(tiling)
    shape = (*GRID.problems, tiling.row_tiles, tiling.column_tiles)
    some, every = np.broadcast_to(some, shape), np.broadcast_to(every, shape)
    values = as_array(mask)
    for row in range(tiling.row_tiles):
        for column in range(tiling.column_tiles):
            part = values[..., row * tile[0] : (row + 1) * tile[0], column * tile[1] : (column + 1) * tile[1]]
            # It may be unsure of a combination, never wrong: an empty tile is skipped, a full one is not masked.
            assert (some[..., row, column] >= part.any((-1, -2))).all()
            assert (every[..., row, column] <= part.all((-1, -2))).all()


@pytest.mark.parametrize(
    "mask",
    [
        masks.Causal("start"),
        masks.Causal("end"),
        masks.Lengths(13),
        masks.Local(block=6, look_back=2, align="end"),
        masks.Prefix(8),
    ],
)
def test_coverage_of_one_condition_is_exact(mask: masks.Mask) -> None:
    tiling = Tiling(GRID.rows, GRID.columns, 4, 5)
    some, every = mask.on(GRID).coverage(tiling)
    values = as_array(mask)[0, 0, 0]
    padded = np.zeros((20, 30), bool)
    padded[:19, :27] = values
    tiles = padded.reshape(5, 4, 6, 5)
    np.testing.assert_array_equal(np.broadcast_to(some, (5, 6)), tiles.any((1, 3)))
    inside = np.pad(values, ((0, 1), (0, 3)), constant_values=True).reshape(5, 4, 6, 5)
    np.testing.assert_array_equal(np.broadcast_to(every, (5, 6)), inside.all((1, 3)))


@given(seeds, seeds)
@settings(max_examples=15, deadline=None)
def test_algebra(one: int, two: int) -> None:
    left, right = any_mask(one), any_mask(two)
    np.testing.assert_array_equal(as_array(left & right), as_array(left) & as_array(right))
    np.testing.assert_array_equal(as_array(left | right), as_array(left) | as_array(right))
    np.testing.assert_array_equal(as_array(~left), ~as_array(left))


def test_definitions() -> None:
    i, j = np.arange(19)[:, None], np.arange(27)
    np.testing.assert_array_equal(masks.Causal("start").dense(19, 27), j <= i)
    np.testing.assert_array_equal(masks.Causal("end").dense(19, 27), j <= i + 8)
    np.testing.assert_array_equal(masks.Window(3, 2, 1).dense(19, 27), (j >= i + 1 - 3) & (j <= i + 1 + 2))
    behind = (j <= i + 1) & (j >= (i + 1) // 4 * 4 - 3)
    np.testing.assert_array_equal(masks.Local(4, 3, 1).dense(19, 27), behind)
    np.testing.assert_array_equal(masks.Lengths(5, 7).dense(19, 27), (j < 5) & (i < 7))


def test_a_mask_is_a_pytree() -> None:
    mask = masks.Causal(jnp.array(2)) & masks.Window(3, None, "start")
    assert [leaf.shape for leaf in jax.tree.leaves(mask)] == [()]
    assert jax.tree.leaves(masks.Causal("start")) == []
    again = jax.jit(lambda mask: mask)(mask)
    np.testing.assert_array_equal(again.dense(5, 5), mask.dense(5, 5))
    many = jax.vmap(lambda offset: Causal(offset).dense(4, 4))(jnp.arange(3))
    for offset in range(3):
        np.testing.assert_array_equal(many[offset], masks.Causal(offset).dense(4, 4))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (masks.Window(-1, 0, "start"), "left must be at least 0"),
        (masks.Local(0, 2, "start"), "block must be at least 1 and look_back 0; got 0 and 2"),
        (masks.Lengths(np.array([1, 2, 3])), "keys must be one number or one for each batch entry"),
        (masks.Segments(np.zeros((2, 5), int)), "segment queries must be of shape"),
        (masks.Blocks(np.ones((3, 3), bool), 4, 4), r"layout must be boolean and have \(5, 7\) blocks"),
        (masks.Dense(np.ones((3, 27), bool)), "mask must broadcast"),
    ],
)
def test_masks_that_do_not_fit(mask: masks.Mask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask.on(GRID)


def test_combining_with_an_array_is_refused() -> None:
    with pytest.raises(TypeError, match=r"wrap an array in masks\.Dense"):
        masks.Causal("start") & np.ones((3, 3), bool)
