"""How a tiled loop holds arrays on the grid, and cuts them into blocks of problems and tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kernels.masks.algebra import Tiling
from kernels.schedule import Tiles
from kernels.shapes import per_entry

Index = Sequence[Any]
Rows = tuple[Any, int]
"""The first of some rows, and how many."""


@dataclass(frozen=True)
class Held:
    """An array of that shape on the grid, as a loop holds it.

    Features come with a length ahead of key heads and groups, as callers have them, so that such an array is never
    copied to the order of the grid as a whole: a block of problems opens its part of it, or makes one and closes it.
    An array without features is held as it is on the grid, and read and added to where it is.
    """

    shape: tuple[int, ...]
    problems: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def apart(self) -> bool:
        """Whether a block of problems has its own part."""
        return len(self.shape) > len(self.problems) + 2 and not per_entry(self.shape, len(self.problems))

    @property
    def order(self) -> list[int]:
        """The grid's axes in the order held. Left out are groups, rows and columns of which there is one.

        XLA would not see that the transpositions to the grid and back cancel if a 1 came between.
        """
        axes = len(self.problems)
        lead = max(axes - 2, 0)
        order = (*range(lead), axes, axes + 1, *range(lead, axes), *range(axes + 2, len(self.shape)))
        return [axis for axis in order if axis not in (axes - 1, axes, axes + 1) or self.shape[axis] != 1]

    def hold(self, array: Array) -> Array:
        """From the grid's order to the one held; of the array or a part."""
        if not self.apart:
            return array
        kept = sorted(self.order)
        flat = array.reshape([array.shape[axis] for axis in kept])
        return lax.transpose(flat, [kept.index(axis) for axis in self.order])

    def release(self, array: Array) -> Array:
        """From the order held to the grid's; of the array or a part."""
        if not self.apart:
            return array
        flat = lax.transpose(array, np.argsort(self.order))
        return lax.expand_dims(flat, [axis for axis in range(len(self.shape)) if axis not in self.order])

    def open(self, array: Array, problem: Index, rows: Rows | None = None) -> Array:
        """What a block of problems reads of the array held (of some rows), in the grid's order."""
        return self.release(lax.dynamic_slice(array, *self._part(problem, rows))) if self.apart else array

    def begin(self, array: Array) -> Array:
        """What a block of problems adds to, in the grid's order."""
        return jnp.zeros([self._extent(axis) for axis in range(len(self.shape))], array.dtype) if self.apart else array

    def close(self, array: Array, made: Array, problem: Index, rows: Rows | None = None) -> Array:
        """The array held, with what a block of problems has made of it (of some rows)."""
        if not self.apart:
            return made
        start, extent = self._part(problem, rows)
        made = self.hold(made)
        if any(size < full for size, full in zip(self.shape, self.problems, strict=False)):
            made = made + lax.dynamic_slice(array, start, extent)
        return lax.dynamic_update_slice(array, made, start)

    def _extent(self, axis: int) -> int:
        return min(self.shape[axis], self.block[axis]) if axis < len(self.block) else self.shape[axis]

    def _part(self, problem: Index, rows: Rows | None) -> tuple[list[Any], list[int]]:
        """Start and extent of the part of a block of problems in the array held."""
        start, extent = [], []
        for axis in self.order:
            if axis == len(self.problems) and rows is not None:
                first, width = rows
            else:
                width = self._extent(axis)
                first = 0 if width == self.shape[axis] else problem[axis] * width
            start.append(jnp.int32(first))
            extent.append(width)
        return start, extent


@dataclass(frozen=True)
class Cut:
    """How arrays on the grid, or the part of a block of problems, are cut into tiles."""

    axes: int
    block: tuple[int, ...]
    tile: Tiles

    def place(self, shape: Sequence[int], problem: Index, row: Array | int, column: Array | int) -> tuple[Any, Any]:
        """Start and extent of a tile in an array of that shape; the array does not vary where it has 1."""
        widths = (*self.block, self.tile.rows, self.tile.columns, *shape[self.axes + 2 :])
        extent = [min(size, width) for size, width in zip(shape, widths, strict=True)]
        index = (*problem, row, column, *(0 for _ in shape[self.axes + 2 :]))
        start = [
            jnp.int32(0 if size == width else place * width)
            for size, width, place in zip(shape, extent, index, strict=True)
        ]
        return start, extent

    def read(self, array: Array, problem: Index, row: Array | int, column: Array | int) -> Array:
        """A tile."""
        return lax.dynamic_slice(array, *self.place(array.shape, problem, row, column))

    def add(
        self, array: Array, part: Array, problem: Index, row: Array | int, column: Array | int, *, new: bool
    ) -> Array:
        """Adds a tile to an array, or puts it there if it is the first and only one; in place within a loop."""
        start, extent = self.place(array.shape, problem, row, column)
        repeated = tuple(axis for axis in range(self.axes) if part.shape[axis] != extent[axis])
        part = (part.sum(axis=repeated, keepdims=True) if repeated else part).reshape(extent)
        if not new:
            part = part + lax.dynamic_slice(array, start, extent)
        return lax.dynamic_update_slice(array, part.astype(array.dtype), start)

    def pad(self, array: Array, tiling: Tiling) -> Array:
        """Zeros behind the rows and columns, up to whole tiles."""
        if per_entry(array.shape, self.axes):
            return array
        want = (tiling.row_tiles * self.tile.rows, tiling.column_tiles * self.tile.columns)
        behind = [
            0 if have == 1 else full - have for have, full in zip(array.shape[self.axes :][:2], want, strict=True)
        ]
        if not any(behind):
            return array
        widths = [(0, 0)] * self.axes + [(0, more) for more in behind] + [(0, 0)] * (array.ndim - self.axes - 2)
        return jnp.pad(array, widths)


@dataclass(frozen=True)
class Entries:
    """How arrays with a number for each entry of a block table are read and added to."""

    cut: Cut
    row_tiles: int
    """How many row tiles a block has."""

    def read(self, array: Array, problem: Index, row: Array, entry: Array) -> Array:
        """The numbers of an entry, one a problem, as a tile with rows and columns of 1."""
        return self._numbers.read(self._flat(array), problem, row // self.row_tiles, entry)

    def add(self, array: Array, part: Array, problem: Index, row: Array, entry: Array) -> Array:
        """Adds to the numbers of an entry."""
        made = self._numbers.add(self._flat(array), part, problem, row // self.row_tiles, entry, new=False)
        return made.reshape(array.shape)

    @property
    def _numbers(self) -> Cut:
        return Cut(self.cut.axes, self.cut.block, Tiles(1, 1))

    def _flat(self, array: Array) -> Array:
        """Row blocks and entries as if they were rows and columns."""
        return array.reshape(*array.shape[: self.cut.axes], *array.shape[-3:-1])
