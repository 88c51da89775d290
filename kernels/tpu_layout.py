"""How arrays on the grid lie in memory for Pallas kernels on a TPU.

What a TPU wants: the last two axes of a block in units of (8 to 32, 128), so numbers for each row or column lie along
lanes, one tile a line, `(tiles, 1, tile)`; what is not 32 bits wide only in matrices. All of it is decided from shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kernels.layout import GridArray
from kernels.masks.block_table import BlockTable
from kernels.schedule import Tiles

LANES = 128
SUBLANES = 16

Ids = Sequence[Any]
Part = tuple[Any, Any]
"""Rows and columns of a tile, as two `pl.ds`."""


def round_up(size: int, unit: int) -> int:
    """The next multiple."""
    return -(-size // unit) * unit


def fit(sizes: tuple[int, int], tiles: Tiles, table: BlockTable | None) -> Tiles:
    """Tiles that cut the sizes into equal parts, not many more than asked, in units of the hardware.

    Those of a table's blocks are the longest that divide them; where none does, the least there is.
    """
    blocks = sizes if table is None else table.blocks

    def one(size: int, block: int, tile: int, unit: int) -> int:
        if size <= block:
            parts = max(1, -(-size // tile))
            return round_up(max(1, -(-size // parts)), unit)
        fitting = [part for part in range(unit, max(tile, unit) + 1, unit) if block % part == 0]
        return max(fitting, default=unit)

    units = (SUBLANES, LANES)
    rows, columns = map(one, sizes, blocks, (tiles.rows, tiles.columns), units)
    return Tiles(rows, columns)


def to_column(line: Float[Array, "1 n"]) -> Float[Array, "n 1"]:
    """Numbers along lanes, a multiple of 128 of them, to numbers along sublanes."""
    return jnp.broadcast_to(line, (LANES, line.shape[1])).T[:, :1]


def to_line(column: Float[Array, "n 1"]) -> Float[Array, "1 padded"]:
    """Numbers along sublanes to numbers along lanes, up to the next multiple of 128 of them."""
    behind = round_up(column.shape[0], LANES) - column.shape[0]
    if behind:
        column = jnp.concatenate([column, jnp.zeros((behind, 1), column.dtype)])
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


@dataclass(frozen=True)
class Layout(GridArray):
    """How an array on the grid is cut into blocks."""

    whole: bool = False
    """Whether one block has all the tiles of a problem; of what varies along rows or columns, not both."""

    @property
    def tile(self) -> Tiles:
        return Tiles(self.tiling.tile_rows, self.tiling.tile_columns)

    @property
    def memory_dtype(self) -> Any:
        kind = jnp.dtype(self.dtype)
        matrix = bool(self.features) or all(self.along)
        if kind == jnp.bool_:
            return jnp.int8 if all(self.along) and self.tile.rows % 32 == 0 else jnp.int32
        if jnp.issubdtype(kind, jnp.integer):
            return jnp.int32
        return kind if matrix and kind == jnp.bfloat16 else jnp.float32

    @property
    def _size(self) -> tuple[int, int]:
        """How many there are along rows or columns, whichever it varies along, and the tile of it."""
        rows, columns = self.shape[self.axes : self.axes + 2]
        if self.along[0]:
            return rows, self.tile.rows
        return (columns, self.tile.columns) if self.along[1] else (1, 1)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        lead, (size, tile) = self.shape[: self.axes], self._size
        if self.of_entries:
            return (*lead, self.tiling.row_tiles, 1, self.tiling.column_tiles)
        if self.features:
            return (*lead, round_up(size, tile) if self.whole else size, *self.features)
        if any(self.along) and not all(self.along):
            return (*lead, -(-size // tile), 1, round_up(tile, LANES))
        return self.shape

    def to_memory(self, array: Array) -> Array:
        array = array.astype(self.memory_dtype)
        lead, (size, tile) = self.shape[: self.axes], self._size
        if self.features or all(self.along) or not any(self.along):
            return array.reshape(self.memory_shape)
        nothing = [(0, 0)] * self.axes
        line = jnp.pad(array.reshape(*lead, size), [*nothing, (0, round_up(size, tile) - size)])
        line = line.reshape(*lead, -1, 1, tile)
        return jnp.pad(line, [*nothing, (0, 0), (0, 0), (0, round_up(tile, LANES) - tile)])

    def from_memory(self, array: Array) -> Array:
        lead, (size, tile) = self.shape[: self.axes], self._size
        if any(self.along) and not all(self.along) and not self.features:
            array = array[..., 0, :tile].reshape(*lead, -1)[..., :size]
        elif self.whole:
            array = array[..., :size, :]
        return array.reshape(self.shape).astype(self.dtype)

    def block(self) -> tuple[int | None, ...]:
        lead: tuple[int | None, ...] = (None,) * self.axes
        if self.of_entries:
            return (*lead, None, 1, self.tiling.column_tiles)
        if self.whole:
            return (*lead, *self.memory_shape[self.axes :])
        if self.features:
            return (*lead, self._size[1], *self.features)
        if all(self.along):
            return (*lead, self.tile.rows, self.tile.columns)
        return (*lead, None, 1, round_up(self._size[1], LANES)) if any(self.along) else (*lead, 1, 1)

    def place(self, problem: Ids, row: Any, column: Any) -> tuple[Any, ...]:
        """The index of the block of a tile."""
        lead = [0 if size == 1 else index for size, index in zip(self.shape, problem, strict=False)]
        rows, columns = self.along
        if self.of_entries:
            return (*lead, row, 0, 0)
        if self.whole:
            return (*lead, *(0 for _ in self.memory_shape[self.axes :]))
        if rows and columns:
            return (*lead, row, column)
        index = row if rows else column if columns else 0
        return (*lead, index, 0, 0) if (rows or columns) and not self.features else (*lead, index, 0)

    def read(self, ref: Any, part: Part, column: Any) -> Array:
        """In the kernel: those rows and columns of the tile, as tile functions and masks want them; 32 bits wide.

        Numbers for tiles come for all of a row tile, of which `column` says the one. What lies along lanes in memory
        may have been turned to sublanes already (`Inputs.turn`).
        """
        rows, columns = self.along
        wide = jnp.float32 if jnp.issubdtype(self.dtype, jnp.floating) else jnp.int32
        if self.of_entries:
            here = lax.broadcasted_iota(jnp.int32, ref.shape, 1) == column
            return jnp.where(here, ref[...], 0).astype(wide).sum(axis=1, keepdims=True)
        if self.features:
            values = (ref[part[0] if rows else part[1], :] if rows or columns else ref[...]).astype(wide)
            return values[:, None] if rows or not columns else values[None]
        if rows and columns:
            values = ref[part]
        elif rows and ref.shape[0] > 1:
            values = ref[part[0], :1]
        elif rows:
            size = part[0].size
            values = to_column(ref[...])[:size] if size % LANES else to_column(ref[:, part[0]])
        else:
            values = ref[:, part[1]] if columns else ref[...]
        return values.astype(wide)
