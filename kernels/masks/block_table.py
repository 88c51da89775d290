"""The mask that lists, for each block of queries, the blocks of keys that it reads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from kernels.masks.algebra import And, Coverage, Mask, Positions, Tiling, pytree
from kernels.masks.arrays import Blocks
from kernels.shapes import Grid


@pytree
class BlockTable(Mask):
    """For each block of `rows` queries the blocks of `columns` keys that it reads, of a list the first `counts`.

    Lists (row_blocks, entries) and counts (row_blocks,), or with axes ahead of them that broadcast to (*batch, heads).
    The order within a list does not matter; an entry that is there already, or no block, counts for nothing. No counts:
    lists are full. Work and memory go with what is listed.

    >>> BlockTable(jnp.array([[0, 0], [2, 1]]), jnp.array([1, 2]), rows=2, columns=1).dense(4, 4).astype(int)
    Array([[1, 0, 0, 0],
           [1, 0, 0, 0],
           [0, 1, 1, 0],
           [0, 1, 1, 0]], dtype=int32)
    """

    indices: Array | np.ndarray
    counts: Any = None
    """An array, or None: all entries."""
    rows: int = dataclasses.field(kw_only=True)
    columns: int = dataclasses.field(kw_only=True)

    def on(self, grid: Grid) -> "BlockTable":
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"rows and columns of a block must be at least 1; got {self.rows} and {self.columns}")
        indices = jnp.asarray(self.indices)
        entries = indices.shape[-1] if indices.ndim else 0
        counts = jnp.full(indices.shape[:-1], entries) if self.counts is None else jnp.asarray(self.counts)
        blocks = -(-grid.rows // self.rows)
        for name, array, want in (("indices", indices, (blocks, entries)), ("counts", counts, (blocks,))):
            if not jnp.issubdtype(array.dtype, jnp.integer):
                raise TypeError(f"{name} of a block table must be integers; got {array.dtype}")
            if array.shape[array.ndim - len(want) :] != want or array.ndim < len(want):
                raise ValueError(
                    f"{name} of a block table must end in {want}, for {grid.rows} queries in blocks of {self.rows}; "
                    f"got shape {array.shape}"
                )
        lists = dataclasses.replace(grid, rows=blocks, columns=entries).scores("indices", indices)
        lengths = dataclasses.replace(grid, rows=blocks, columns=1).scores("counts[..., None]", counts[..., None])
        return BlockTable(
            lists[:, :, :, None, None].astype(jnp.int32),
            lengths[:, :, :, None, None].astype(jnp.int32),
            rows=self.rows,
            columns=self.columns,
        )

    @property
    def blocks(self) -> tuple[int, int]:
        """Queries and keys of a block."""
        return self.rows, self.columns

    def tiles_in_block(self, tiling: Tiling) -> tuple[int, int]:
        """How many row tiles and column tiles a block has, where no tile is in two."""
        return -(-self.rows // tiling.tile_rows), -(-self.columns // tiling.tile_columns)

    def live(self, column_blocks: int) -> Bool[Array, "*problems row_blocks entries"]:
        """Which entries count, of a table on a grid: those within the count, of a block there is, not there before."""
        indices, counts = without_ones(self.indices), without_ones(self.counts)
        inside = (jnp.arange(indices.shape[-1]) < counts) & (indices >= 0) & (indices < column_blocks)
        # What is there already stands behind it when sorted. Sorting, unlike a gather, is fast on every platform.
        values = jnp.where(inside, indices, -1)
        ranked, places = jax.lax.sort((values, jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)))
        again = jnp.concatenate([jnp.zeros_like(inside[..., :1]), ranked[..., 1:] == ranked[..., :-1]], axis=-1)
        _, again = jax.lax.sort((places, again.astype(jnp.int32)))
        return inside & (again == 0)

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        indices, counts = self.indices[0, 0], self.counts[0, 0, :, 0]
        own, other = rows // self.rows, columns // self.columns

        def more(entry: Any, found: Array) -> Array:
            return found | ((indices[:, entry][own] == other) & (entry < counts[own]))

        return jax.lax.fori_loop(
            0, indices.shape[-1], more, jnp.zeros(jnp.broadcast_shapes(own.shape, other.shape), bool)
        )

    def coverage(self, tiling: Tiling) -> Coverage:
        if tiling.listed is not None:
            return super().coverage(tiling)
        blocks = -(-tiling.columns // self.columns)
        layout = spread(self, self.live(blocks).astype(jnp.int32), blocks) > 0
        if self.rows % tiling.tile_rows == 0 and self.columns % tiling.tile_columns == 0:
            # A tile is in one block.
            tiles = repeated(self, layout, tiling)
            return tiles, tiles
        return Blocks(layout[..., None, None, :, :], self.rows, self.columns).coverage(tiling)


def without_ones(array: Any) -> Array:
    """An array of a table on a grid without the axes of rows and columns, which are 1 there."""
    return array.reshape(*array.shape[:-4], *array.shape[-2:])


def spread(table: BlockTable, values: Array, column_blocks: int) -> Array:
    """Numbers for the entries of a table on a grid as an array (*problems, row_blocks, column_blocks), 0 elsewhere."""
    # By comparison, as scattering is slow on a TPU.
    own = without_ones(table.indices)[..., None] == jnp.arange(column_blocks)
    return jnp.where(own, values[..., None], 0).sum(axis=-2, dtype=values.dtype)


def repeated(table: BlockTable, blocks: Array, tiling: Tiling) -> Shaped[Array, "*problems row_tiles column_tiles"]:
    """What is said of blocks, of the tiles in them."""
    rows, columns = table.tiles_in_block(tiling)
    tiles = jnp.repeat(blocks, rows, axis=-2)[..., : tiling.row_tiles, :]
    return jnp.repeat(tiles, columns, axis=-1)[..., : tiling.column_tiles]


def split_table(mask: Mask | None) -> tuple[BlockTable | None, Mask | None]:
    """A block table that everything else is taken together with, and the rest; None where there is no such."""
    match mask:
        case BlockTable():
            return mask, None
        case And(left=left, right=right):
            for one, other in ((left, right), (right, left)):
                table, rest = split_table(one)
                if table is not None:
                    return table, other if rest is None else And(rest, other)
    return None, mask
