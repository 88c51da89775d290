"""Numbers for the entries of a block table (log gates) as GPU and TPU kernels have them: one for each tile.

A kernel finds by its tile what belongs to it, in whichever order it visits tiles, and so needs no list of entries. The
array remains one that `kernels.shapes.per_entry` knows: (*problems, 1, 1, row tiles, column tiles, 1).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kernels.loop import Output
from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import BlockTable, repeated, split_table, spread, without_ones
from kernels.schedule import classes
from kernels.shapes import per_entry


def shape_in_tiles(array: Any, table: BlockTable | None, tiling: Tiling) -> tuple[int, ...]:
    """The shape of what `to_tiles` gives, from shapes alone."""
    if table is None or not per_entry(array.shape, tiling.problem_axes):
        return tuple(array.shape)
    arrays = (array, table.indices, table.counts)
    return _shape(jnp.broadcast_shapes(*(each.shape[: tiling.problem_axes] for each in arrays)), tiling)


def output_in_tiles(output: Output, problems: Sequence[int], tiling: Tiling) -> Output:
    """What a kernel makes that `from_tiles` takes: of entries float32 numbers for the tiles of all problems."""
    if not per_entry(output.shape, tiling.problem_axes):
        return output
    return Output(_shape(problems, tiling), jnp.float32)


def _shape(problems: Sequence[int], tiling: Tiling) -> tuple[int, ...]:
    return (*problems, 1, 1, tiling.row_tiles, tiling.column_tiles, 1)


def to_tiles(array: Array, table: BlockTable | None, tiling: Tiling) -> Array:
    """Numbers for entries as numbers for tiles, in float32, 0 where nothing is listed; other arrays as they are."""
    if table is None or not per_entry(array.shape, tiling.problem_axes):
        return array
    blocks = -(-tiling.columns // table.columns)
    # Entries that do not count may hold anything.
    values = jnp.where(table.live(blocks), without_ones(array[..., 0]).astype(jnp.float32), 0)
    return repeated(table, spread(table, values, blocks), tiling).reshape(shape_in_tiles(array, table, tiling))


def from_tiles(result: Array, output: Output, mask: Mask | None, tiling: Tiling) -> Array:
    """Sums over what each entry reads, of sums over tiles for all problems; other results as they are.

    Tiles that are not visited may hold anything.
    """
    table, _ = split_table(mask)
    if table is None or not per_entry(output.shape, tiling.problem_axes):
        return result
    tiles = without_ones(result[..., 0])
    tiles = jnp.where(classes(mask, tiling, (1,) * tiling.problem_axes)[0], tiles, 0)
    rows, columns = table.tiles_in_block(tiling)
    row_blocks, column_blocks = -(-tiling.rows // table.rows), -(-tiling.columns // table.columns)
    behind = (row_blocks * rows - tiling.row_tiles, column_blocks * columns - tiling.column_tiles)
    tiles = jnp.pad(tiles, [(0, 0)] * tiling.problem_axes + [(0, more) for more in behind])
    blocks = tiles.reshape(*tiles.shape[:-2], row_blocks, rows, column_blocks, columns).sum(axis=(-3, -1))
    # Not a gather, which is slow on a TPU.
    own = without_ones(table.indices)[..., None] == jnp.arange(column_blocks)
    own &= table.live(column_blocks)[..., None]
    values = jnp.where(own, blocks[..., None, :], 0).sum(axis=-1)
    repeats = tuple(axis for axis in range(tiling.problem_axes) if output.shape[axis] < values.shape[axis])
    return values.sum(axis=repeats).reshape(output.shape).astype(output.dtype)
