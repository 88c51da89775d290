"""Which tiles are visited, and in what order: full ones first, then partial ones, empty ones never."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from kernels.masks.algebra import Mask, Tiling


@dataclass(frozen=True)
class Tiles:
    """How many rows and columns of scores are computed at once."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        for name, size in (("rows", self.rows), ("columns", self.columns)):
            if size < 1:
                raise ValueError(f"{name} of a tile must be at least 1; got {size}")


def fit(size: int, tile: int) -> int:
    """The tile, not above `tile`, that cuts `size` into equal parts; a multiple of 8 where there are several."""
    parts = -(-size // tile)
    return size if parts == 1 else min(tile, -(-size // (8 * parts)) * 8)


def blocks(problems: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """How much of each problem axis one step takes: whole trailing axes, then a divisor, up to `limit` problems."""
    taken = [1] * len(problems)
    for axis in reversed(range(len(problems))):
        taken[axis] = max(part for part in range(1, problems[axis] + 1) if problems[axis] % part == 0 and part <= limit)
        limit //= taken[axis]
        if taken[axis] < problems[axis]:
            break
    return tuple(taken)


def classes(
    mask: Mask | None, tiling: Tiling, block: Sequence[int]
) -> tuple[Bool[Array, "*blocks row_tiles column_tiles"], Bool[Array, "*blocks row_tiles column_tiles"]]:
    """Of every tile of every block of problems: may it allow something, and is it surely full.

    A tile that reaches past the end is not full. Blocks along which the mask does not vary stay 1.
    """
    shape = (tiling.row_tiles, tiling.column_tiles)
    some = every = jnp.ones(shape, bool)
    if mask is not None:
        some, every = mask.coverage(tiling)
    inside_rows = (jnp.arange(tiling.row_tiles) + 1)[:, None] * tiling.tile_rows <= tiling.rows
    inside_columns = (jnp.arange(tiling.column_tiles) + 1)[None] * tiling.tile_columns <= tiling.columns
    every = every & inside_rows & inside_columns

    def of_blocks(values: Array, reduce: Callable[..., Array]) -> Array:
        lead = (1,) * (tiling.problem_axes + 2 - values.ndim) + values.shape[:-2]
        parts = [size if size == 1 else size // part for size, part in zip(lead, block, strict=True)]
        within = [1 if size == 1 else part for size, part in zip(lead, block, strict=True)]
        values = jnp.broadcast_to(values, (*values.shape[:-2], *shape))
        split = values.reshape(*(n for pair in zip(parts, within, strict=True) for n in pair), *shape)
        return reduce(split, axis=tuple(range(1, 2 * len(parts), 2)))

    return of_blocks(some, jnp.any), of_blocks(every, jnp.all)


def table_problems(mask: Mask | None, tiling: Tiling) -> tuple[int, ...] | None:
    """Sizes of the problem axes of a mask's visit table, from shapes alone; None where all tiles are full."""
    even = tiling.rows % tiling.tile_rows == 0 and tiling.columns % tiling.tile_columns == 0
    if mask is None and even:
        return None
    return jax.eval_shape(lambda mask: classes(mask, tiling, (1,) * tiling.problem_axes), mask)[0].shape[:-2]


def visit_table_size(mask: Mask | None, tiling: Tiling) -> int:
    """How many numbers a visit table has, whichever tiles have the results."""
    problems = table_problems(mask, tiling)
    longest = max(tiling.row_tiles, tiling.column_tiles)
    return 0 if problems is None else math.prod(problems) * (tiling.row_tiles * tiling.column_tiles + 2 * longest)


def visit_table(mask: Mask | None, tiling: Tiling, own: tuple[bool, bool]) -> Int[Array, " numbers"]:
    """What a kernel that has results for each tile of rows, of columns, or both (`own`) reads to know where to go.

    For each of its row (column) tiles: how many tiles of the other kind are full, how many not empty, and which, full
    ones first. For both: of each tile 0 if it is full, 1 if partial, 2 if empty. In the order of problems, then tiles.
    """
    some, every = classes(mask, tiling, (1,) * tiling.problem_axes)
    kind = jnp.where(every, 0, jnp.where(some, 1, 2)).astype(jnp.int32)
    if all(own):
        return kind.reshape(-1)
    if own[1]:
        kind = kind.swapaxes(-1, -2)
    order = jnp.argsort(kind, axis=-1, stable=True)
    counts = [(kind == 0).sum(-1, keepdims=True), (kind < 2).sum(-1, keepdims=True)]
    return jnp.concatenate([*counts, order], axis=-1).astype(jnp.int32).reshape(-1)


def place_in_table(problems: Sequence[int], problem: Sequence[Any], counts: Sequence[int], own: Sequence[Any]) -> Any:
    """Which entry of a visit table is that of a problem and its own tiles; axes of problems that are 1 do not count."""
    place = 0
    for size, index in zip((*problems, *counts), (*problem, *own), strict=True):
        place = place if size == 1 else place * size + index
    return place


@dataclass(frozen=True)
class Schedule:
    """For every row tile, the column tiles in the order of the visit, how many are full, and how many not empty."""

    order: Int[Array, "*blocks row_tiles column_tiles"] | None
    full: Int[Array, "*blocks row_tiles"] | None
    live: Int[Array, "*blocks row_tiles"] | None
    column_tiles: int

    @staticmethod
    def of(mask: Mask | None, tiling: Tiling, block: Sequence[int]) -> "Schedule":
        even = tiling.rows % tiling.tile_rows == 0 and tiling.columns % tiling.tile_columns == 0
        if mask is None and even:
            return Schedule(None, None, None, tiling.column_tiles)
        some, every = classes(mask, tiling, block)
        kind = jnp.where(every, 0, jnp.where(some, 1, 2))
        order = jnp.argsort(kind, axis=-1, stable=True).astype(jnp.int32)
        return Schedule(order, (kind == 0).sum(-1), (kind < 2).sum(-1), tiling.column_tiles)

    @property
    def masked(self) -> bool:
        """Whether there may be partial tiles."""
        return self.order is not None

    def column(self, problem: Sequence[Array], row: Array, visit: Array) -> Array:
        """The column tile of a visit."""
        return visit if self.order is None else self.order[(*_within(self.order, problem), row, visit)]

    def counts(self, problem: Sequence[Array], row: Array) -> tuple[Array | int, Array | int]:
        """Visits to full tiles, and all visits."""
        if self.full is None or self.live is None:
            return self.column_tiles, self.column_tiles
        place = (*_within(self.full, problem), row)
        return self.full[place], self.live[place]


def _within(array: Array, problem: Sequence[Array]) -> list[Array | int]:
    return [0 if size == 1 else index for size, index in zip(array.shape, problem, strict=False)]
