"""Masks that arrays say: segments, blocks, any array, any function."""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from kernels.masks.algebra import Coverage, Mask, Positions, Tiling, pytree, tile_ranges
from kernels.shapes import Grid


@pytree
class Segments(Mask):
    """A query reads the keys of its own segment (packed documents); `keys` defaults to the queries' own.

    >>> Segments(jnp.array([7, 7, 7, 9])).dense(4, 4).astype(int)
    Array([[1, 1, 1, 0],
           [1, 1, 1, 0],
           [1, 1, 1, 0],
           [0, 0, 0, 1]], dtype=int32)
    """

    queries: Array | np.ndarray
    keys: Array | np.ndarray | None = None

    def on(self, grid: Grid) -> "Segments":
        keys = self.queries if self.keys is None else self.keys
        placed = []
        for name, ids, length in (("queries", self.queries, grid.rows), ("keys", keys, grid.columns)):
            want = (*grid.batch, length)
            shape = (1,) * (len(want) - ids.ndim) + ids.shape
            if not jnp.issubdtype(ids.dtype, jnp.integer):
                raise TypeError(f"segment {name} must be integers; got {ids.dtype}")
            if (
                shape[-1] != length
                or len(shape) != len(want)
                or any(have not in (1, full) for have, full in zip(shape, want, strict=True))
            ):
                raise ValueError(f"segment {name} must be of shape {want}, or ({length},); got {ids.shape}")
            flat = (1, length) if ids.size == length else want
            placed.append(jnp.broadcast_to(ids.reshape(shape), flat if len(flat) == len(want) else want))
        queries, keys = (ids.reshape(math.prod(ids.shape[:-1]), 1, 1, ids.shape[-1]) for ids in placed)
        return Segments(queries[..., None], keys[..., None, :])

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        return self.queries == self.keys

    def coverage(self, tiling: Tiling) -> Coverage:
        if tiling.listed is not None:
            return super().coverage(tiling)
        # Two tiles of identifiers can meet where their ranges do, and surely meet where both hold one and the same.
        low_row, high_row = tile_ranges(self.queries, -2, tiling.row_tiles, tiling.tile_rows)
        low_column, high_column = tile_ranges(self.keys, -1, tiling.column_tiles, tiling.tile_columns)
        some = (low_row <= high_column) & (low_column <= high_row)
        every = (low_row == high_row) & (low_column == high_column) & (low_row == low_column)
        return some, every


@pytree
class Blocks(Mask):
    """Whole blocks of keys for whole blocks of queries; `layout` broadcasts to (*batch, heads, row blocks, columns').

    >>> Blocks(jnp.array([[True, False], [True, True]]), rows=2, columns=2).dense(4, 4).astype(int)
    Array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 1],
           [1, 1, 1, 1]], dtype=int32)
    """

    layout: Array | np.ndarray
    rows: int
    columns: int

    def on(self, grid: Grid) -> "Blocks":
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"rows and columns of a block must be at least 1; got {self.rows} and {self.columns}")
        want = (-(-grid.rows // self.rows), -(-grid.columns // self.columns))
        if self.layout.dtype != jnp.bool_ or self.layout.shape[-2:] != want:
            raise ValueError(
                f"layout must be boolean and have {want} blocks of {self.rows} x {self.columns} for {grid.sizes}; "
                f"got {self.layout.dtype} of shape {self.layout.shape}"
            )
        blocks = dataclasses.replace(grid, rows=want[0], columns=want[1])
        return Blocks(blocks.scores("layout", jnp.asarray(self.layout))[:, :, :, None, None], self.rows, self.columns)

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        return self.layout[0, 0][rows // self.rows, columns // self.columns]

    def coverage(self, tiling: Tiling) -> Coverage:
        if tiling.listed is not None:
            return super().coverage(tiling)
        # How many of the blocks under a tile are allowed, from sums over all blocks before a corner.
        (top, left), _, _, (bottom, right) = tiling.corners()
        top, bottom = top // self.rows, bottom // self.rows + 1
        left, right = left // self.columns, right // self.columns + 1
        layout = self.layout.reshape(*self.layout.shape[:-4], *self.layout.shape[-2:])
        before = jnp.pad(layout.astype(jnp.int32), [(0, 0)] * (layout.ndim - 2) + [(1, 0), (1, 0)])
        before = before.cumsum(axis=-1).cumsum(axis=-2)
        count = (
            before[..., bottom, right] - before[..., top, right] - before[..., bottom, left] + before[..., top, left]
        )
        return count > 0, count == (bottom - top) * (right - left)


@pytree
class Dense(Mask):
    """Any boolean array that broadcasts to (*batch, heads, query_length, key_length).

    >>> Dense(jnp.eye(4, dtype=bool)).dense(4, 4).astype(int)
    Array([[1, 0, 0, 0],
           [0, 1, 0, 0],
           [0, 0, 1, 0],
           [0, 0, 0, 1]], dtype=int32)
    """

    array: Array | np.ndarray

    def on(self, grid: Grid) -> "Dense":
        if self.array.dtype != jnp.bool_:
            raise TypeError(f"mask must be boolean; got {self.array.dtype} (what is added to the scores is a bias)")
        return Dense(grid.scores("mask", jnp.asarray(self.array)))

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        return jnp.asarray(self.array)


@pytree
class Where(Mask):
    """Whatever `function(rows, columns, *captured)` says of positions (rows, 1) and (1, columns).

    The function broadcasts; what it needs besides positions it gets as `captured` arrays, each of them whole, so that
    they may be traced. To know which tiles are empty it is evaluated for every pair once a pass.

    >>> Where(lambda i, j: (i + j) % 2 == 0).dense(4, 4).astype(int)
    Array([[1, 0, 1, 0],
           [0, 1, 0, 1],
           [1, 0, 1, 0],
           [0, 1, 0, 1]], dtype=int32)
    """

    function: Callable[..., Array]
    captured: tuple[Array | np.ndarray, ...] = ()

    def on(self, grid: Grid) -> "Where":
        return Where(self.function, tuple(jnp.asarray(array)[(None,) * 5] for array in self.captured))

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        values = self.function(rows, columns, *(array[0, 0] for array in self.captured))
        if values.dtype != jnp.bool_:
            raise TypeError(f"function must return booleans; got {values.dtype}")
        return values
