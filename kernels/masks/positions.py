"""Masks that compare positions: causal, windows, prefixes, lengths."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from kernels.masks.algebra import And, Coverage, Mask, Not, Or, Positions, Tiling, pytree, tile_ranges
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
        some = every = jnp.ones((1, 1), bool)
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
class Local(HalfPlanes):
    """A query reads its own block of positions up to itself, and the `look_back` keys before that block.

    >>> Local(block=2, look_back=1, align="start").dense(4, 4).astype(int)
    Array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 1, 1, 1]], dtype=int32)
    """

    block: int
    look_back: int
    align: Any
    """An `Align`; a number or an array of them once on a grid."""

    def on(self, grid: Grid) -> "Local":
        if self.block < 1 or self.look_back < 0:
            raise ValueError(f"block must be at least 1 and look_back 0; got {self.block} and {self.look_back}")
        return Local(self.block, self.look_back, offset(self.align, grid))

    def margins(self, rows: Positions, columns: Positions) -> list[Any]:
        own = jnp.asarray(rows + self.align)
        # Into the block, also before position 0; kernels on a TPU have no division that rounds down.
        into = jax.lax.rem(own, jnp.full_like(own, self.block))
        start = own - jnp.where(into < 0, into + self.block, into)
        return [own - columns, columns - (start - self.look_back)]


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


@pytree
class At(Mask):
    """A mask of positions, for queries and keys that stand at those positions instead of 0, 1, 2 and so on.

    Integers of shape (length,), (*batch, length) or (*batch, heads, length), heads of queries. For tokens that
    were gathered, or sorted, or belong to a longer sequence.

    >>> At(Causal("start"), queries=jnp.array([3, 1]), keys=jnp.array([0, 1, 2, 3])).dense(2, 4).astype(int)
    Array([[1, 1, 1, 1],
           [1, 1, 0, 0]], dtype=int32)
    """

    mask: Mask
    queries: Array | np.ndarray
    keys: Array | np.ndarray

    def on(self, grid: Grid) -> "At":
        inner = self.mask.on(grid)
        if any(leaf.shape[3:5] != (1, 1) for leaf in jax.tree.leaves(inner)):
            raise ValueError(f"mask must be one of positions alone, as Causal and Window are; got {type(self.mask)}")
        rows = _of_tokens("queries", self.queries, grid, grid.rows)[..., None]
        return At(inner, rows, _of_tokens("keys", self.keys, grid, grid.columns)[..., None, :])

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        return self.mask.allowed(jnp.asarray(self.queries), jnp.asarray(self.keys))

    def coverage(self, tiling: Tiling) -> Coverage:
        if not known_from_corners(self.mask):
            return super().coverage(tiling)
        rows = tile_ranges(self.queries, -2, tiling.row_tiles, tiling.tile_rows)
        columns = tile_ranges(self.keys, -1, tiling.column_tiles, tiling.tile_columns)
        if tiling.listed is not None:
            columns = _at_listed(columns[0], tiling.listed), _at_listed(columns[1], tiling.listed)
        sizes = (tiling.rows, tiling.columns, tiling.tile_rows, tiling.tile_columns)
        return self.mask.coverage(Placed(*sizes, tiling.problem_axes, tiling.listed, spans=(rows, columns)))


@dataclass(frozen=True)
class Placed(Tiling):
    """A tiling whose tiles span ranges of positions that are given."""

    spans: Any = dataclasses.field(default=None, compare=False)
    """Lowest and highest of rows, and of columns."""

    def corners(self) -> list[tuple[Positions, Positions]]:
        rows, columns = self.spans
        return [(row, column) for row in rows for column in columns]


def _at_listed(values: Array, listed: Array) -> Int[Array, "*problems row_tiles entries"]:
    """Of numbers for column tiles (*problems, 1, column_tiles), those of the listed ones."""
    problems = jnp.broadcast_shapes(values.shape[:-2], listed.shape[:-2])
    listed = jnp.broadcast_to(listed, (*problems, *listed.shape[-2:]))
    values = jnp.broadcast_to(values[..., 0, :], (*problems, values.shape[-1]))
    return jnp.take_along_axis(values, listed.reshape(*problems, -1), axis=-1).reshape(listed.shape)


def known_from_corners(mask: Mask) -> bool:
    match mask:
        case And() | Or():
            return known_from_corners(mask.left) and known_from_corners(mask.right)
        case Not():
            return known_from_corners(mask.mask)
    return isinstance(mask, HalfPlanes)


def keys_in_reach(mask: Mask | None) -> int | None:
    """Within how many positions in a row lie all keys that a query may read, as far as the kind of mask tells.

    None: anywhere.
    """
    match mask:
        case Window(left=int(left), right=int(right)):
            return left + right + 1
        case Local():
            return mask.block + mask.look_back
        case At():
            return keys_in_reach(mask.mask)
        case And():
            known = [reach for reach in map(keys_in_reach, (mask.left, mask.right)) if reach is not None]
            return min(known, default=None)
    return None


def _of_tokens(name: str, positions: Any, grid: Grid, length: int) -> Int[Array, "#flat #kv_heads #groups length"]:
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers; got {positions.dtype}")
    positions = jnp.asarray(positions)
    batch, heads = grid.batch, grid.kv_heads * grid.groups
    match positions.ndim - len(batch):
        case 2 if positions.shape == (*batch, heads, length):
            return positions.reshape(*grid.problems, length)
        case 1 if positions.shape == (*batch, length):
            return positions.reshape(-1, 1, 1, length)
        case _ if positions.shape == (length,):
            return positions.reshape(1, 1, 1, length)
    wanted = f"({length},), {(*batch, length)} or {(*batch, heads, length)}"
    raise ValueError(f"{name} must be positions of shape {wanted}; got {positions.shape}")
