"""Which tiles are visited, and in what order: full ones first, then partial ones, empty ones never."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
