"""Blocks that no tile of a kernel divides: padded, and nothing is changed by it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_block_sparse import QUICKLY, arrays, loss, random_table

from kernels import block_sparse_attention, masks
from kernels.masks.algebra import Tiling, dense
from kernels.shapes import Grid
from kernels.sparse.padded import InPlaces, Spread

PADDED = {
    "gpu, both": ("gpu", 20, (7, 9), masks.Causal("end")),
    "gpu, keys": ("gpu", 40, (16, 24), None),
    "tpu, both": ("tpu", 50, (20, 33), masks.Segments(np.repeat([0, 1], 25), np.repeat([0, 1], 25))),
    "tpu, keys": ("tpu", 40, (40, 16), masks.At(masks.Causal("start"), np.arange(40)[::-1], np.arange(40))),
}


@pytest.mark.parametrize("name", PADDED)
def test_blocks_are_padded_for_kernels_that_are_asked_for(name: str) -> None:
    """In the interpreter, with gates: values and gradients."""
    implementation, length, blocks, mask = PADDED[name]
    row_blocks, column_blocks = (-(-length // block) for block in blocks)
    table = random_table(4, (2, 1, row_blocks, 3), column_blocks, blocks)
    at = arrays(length, length, (row_blocks, 3), heads=2, kv_heads=1)
    at = jax.tree.map(lambda each: each.astype(jnp.float32), at)

    def both(implementation: str) -> Any:
        def attend(at: dict[str, Any]) -> Any:
            given = at["query"], at["key"], at["value"], table
            return block_sparse_attention(*given, mask=mask, log_gates=at["log_gates"], implementation=implementation)

        def run(at: Any) -> Any:
            return attend(at), jax.grad(partial(loss, attend))(at)

        return jax.jit(run, compiler_options=QUICKLY)(at)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), both(implementation), both("reference"))


sizes_of_an_axis = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 8))


@given(sizes_of_an_axis, sizes_of_an_axis, st.sampled_from(["causal", "not causal", "segments", "none"]), st.data())
@settings(max_examples=8, deadline=None)
def test_a_mask_of_spread_tokens_is_the_mask(rows: Any, columns: Any, kind: str, data: st.DataObject) -> None:
    """Pair by pair, with nothing said of padding; and what is said of tiles is never too little, nor too full."""
    spread = Spread.of(*rows), Spread.of(*columns)
    grid = Grid((1,), 1, 1, rows[0], columns[0])
    mask = {
        "causal": masks.Causal("end"),
        "not causal": ~masks.Causal("start"),
        "segments": masks.Segments(np.arange(rows[0]) // 5, np.arange(columns[0]) // 5),
        "none": None,
    }[kind]

    def in_places(leaf: Any) -> Any:
        return spread[1].spread(spread[0].spread(leaf, 3), 4)

    inner = None if mask is None else jax.tree.map(in_places, mask.on(grid))
    sizes = spread[0].size, spread[1].size
    have = dense(InPlaces(inner, *spread), *sizes)[0, 0, 0]
    want = np.ones((rows[0], columns[0]), bool) if mask is None else mask.dense(rows[0], columns[0])
    np.testing.assert_array_equal(spread[1].gathered(spread[0].gathered(have, 0), 1), want)
    assert have.sum() == want.sum()

    tile = tuple(data.draw(st.integers(1, size)) for size in sizes)
    tiling = Tiling(*sizes, *tile)
    some, every = (
        np.broadcast_to(each, (1, 1, 1, tiling.row_tiles, tiling.column_tiles))[0, 0, 0]
        for each in InPlaces(inner, *spread).coverage(tiling)
    )
    for i, j in np.ndindex(some.shape):
        here = have[i * tile[0] : (i + 1) * tile[0], j * tile[1] : (j + 1) * tile[1]]
        assert some[i, j] or not here.any()
        assert here.all() or not every[i, j]
