"""Masks that compare positions: causal, windows, prefixes, lengths."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from kernels.masks.algebra import Coverage, Mask, Positions, Tiling, pytree
from kernels.shapes import Grid

Numbers = int | Array | np.ndarray
Align = Literal["start", "end"] | Numbers


def _per_batch(name: str, numbers: Numbers, grid: Grid) -> Numbers:
    """A number for every problem, or one for each batch entry on the grid."""
    if not isinstance(numbers, (jax.Array, np.ndarray)):
        return numbers
    shape = numbers.shape
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers; got {numbers.dtype}")
    if shape == ():
        return jnp.reshape(numbers, (1,) * 5)
    if len(shape) != len(grid.batch) or any(a not in (1, b) for a, b in zip(shape, grid.batch, strict=True)):
        raise ValueError(f"{name} must be one number or one for each batch entry, {grid.batch}; got {shape}")
    return jnp.broadcast_to(numbers, grid.batch).reshape(-1, 1, 1, 1, 1)


def offset(align: Align, grid: Grid) -> Numbers:
    """The key position of query 0: a number, or one for each batch entry on the grid."""
    if isinstance(align, str):
        if align not in ("start", "end"):
            raise ValueError(f'align must be "start", "end" or the key position of query 0; got {align!r}')
        return 0 if align == "start" else grid.columns - grid.rows
    return _per_batch("align", align, grid)


class HalfPlanes(Mask):
    """A mask that allows a pair where all of its margins are at least 0; each margin is monotone in i and in j."""

    def margins(self, rows: Positions, columns: Positions) -> list[Any]:
        raise NotImplementedError

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        first, *others = (margin >= 0 for margin in self.margins(rows, columns))
        for other in others:
            first = first & other
        return first

    def coverage(self, tiling: Tiling) -> Coverage:
        # A monotone margin has its extremes at the corners of a tile.
        at_corners = zip(*(self.margins(row, column) for row, column in tiling.corners()), strict=True)
        some = every = jnp.ones((tiling.row_tiles, tiling.column_tiles), bool)
        for margin in at_corners:
            some = some & jnp.any(jnp.stack([value >= 0 for value in margin]), axis=0)
            every = every & jnp.all(jnp.stack([value >= 0 for value in margin]), axis=0)
        return some, every


@pytree
class Causal(HalfPlanes):
    """A query reads the keys up to its own position.

    >>> Causal("start").dense(4, 4).astype(int)
    Array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 0],
           [1, 1, 1, 1]], dtype=int32)
    >>> Causal("end").dense(2, 4).astype(int)
    Array([[1, 1, 1, 0],
           [1, 1, 1, 1]], dtype=int32)
    """

    align: Any
    """An `Align`; a number or an array of them once on a grid."""

    def on(self, grid: Grid) -> "Causal":
        return Causal(offset(self.align, grid))

    def margins(self, rows: Positions, columns: Positions) -> list[Any]:
        return [rows + self.align - columns]


@pytree
class Window(HalfPlanes):
    """A query reads the keys from `left` before its own position to `right` behind it; None sets no bound.

    >>> Window(left=1, right=0, align="start").dense(4, 4).astype(int)
    Array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 1, 1]], dtype=int32)
    """

    left: int | None
    right: int | None
    align: Any
    """An `Align`; a number or an array of them once on a grid."""

    def on(self, grid: Grid) -> "Window":
        for name, bound in (("left", self.left), ("right", self.right)):
            if bound is not None and bound < 0:
                raise ValueError(f"{name} must be at least 0, or None for no bound; got {bound}")
        return Window(self.left, self.right, offset(self.align, grid))

    def margins(self, rows: Positions, columns: Positions) -> list[Any]:
        after = columns - (rows + self.align)
        unbounded = jnp.zeros_like(after)
        return [
            unbounded if self.left is None else after + self.left,
            unbounded if self.right is None else self.right - after,
        ]


@pytree
class Prefix(HalfPlanes):
    """Every query reads the first `length` keys; one number, or one for each batch entry.

    >>> (Prefix(2) | Causal("start")).dense(4, 4).astype(int)
    Array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 0],
           [1, 1, 1, 1]], dtype=int32)
    """

    length: Numbers

    def on(self, grid: Grid) -> "Prefix":
        return Prefix(_per_batch("length", self.length, grid))

    def margins(self, rows: Positions, columns: Positions) -> list[Any]:
        return [self.length - 1 - columns + jnp.zeros_like(rows)]


@pytree
class Lengths(HalfPlanes):
    """The true lengths of padded sequences: queries and keys behind them are not there. None: not padded.

    >>> Lengths(keys=3, queries=2).dense(4, 4).astype(int)
    Array([[1, 1, 1, 0],
           [1, 1, 1, 0],
           [0, 0, 0, 0],
           [0, 0, 0, 0]], dtype=int32)
    """

    keys: Any = None
    queries: Any = None
    """`Numbers`, or None."""

    def on(self, grid: Grid) -> "Lengths":
        keys = grid.columns if self.keys is None else self.keys
        queries = grid.rows if self.queries is None else self.queries
        return Lengths(_per_batch("keys", keys, grid), _per_batch("queries", queries, grid))

    def margins(self, rows: Positions, columns: Positions) -> list[Any]:
        return [self.keys - 1 - columns + jnp.zeros_like(rows), self.queries - 1 - rows + jnp.zeros_like(columns)]
