"""Which tiles are visited, and in what order: full ones first, then partial ones, empty ones never."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import BlockTable, split_table, without_ones


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


def fit_within_blocks(table: BlockTable, tiles: Tiles, sizes: tuple[int, int]) -> Tiles:
    """Tiles, not above those, of which whole numbers make a block; a block itself if those would be tiny.

    There is one block, of all there is, where blocks are longer than that.
    """

    def divisor(block: int, tile: int) -> int:
        best = max(part for part in range(1, tile + 1) if block % part == 0)
        return best if 4 * best >= min(block, tile) else block

    rows, columns = (min(block, size) for block, size in zip(table.blocks, sizes, strict=True))
    return Tiles(divisor(rows, tiles.rows), divisor(columns, tiles.columns))


def most_listed(table: BlockTable | None, tiling: Tiling) -> int | None:
    """How many column tiles the lists of a table have room for; None without one."""
    return None if table is None else table.indices.shape[-1] * -(-table.columns // tiling.tile_columns)


def cut_blocks(table: BlockTable | None, tiling: Tiling) -> str | None:
    """Which blocks of a table are not made of whole tiles, or None."""
    if table is None:
        return None
    tiles, sizes = (tiling.tile_rows, tiling.tile_columns), (tiling.rows, tiling.columns)
    for name, block, tile, size in zip(("queries", "keys"), table.blocks, tiles, sizes, strict=True):
        if size > block and block % tile:
            return f"blocks of {block} {name}: a tile has no fewer than {tile}, and has to divide them"
    return None


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
    every = every & _inside(tiling, jnp.arange(tiling.column_tiles)[None])
    return _of_blocks(some, jnp.any, shape, block), _of_blocks(every, jnp.all, shape, block)


def _inside(tiling: Tiling, column_tiles: Array) -> Bool[Array, "*problems row_tiles column_tiles"]:
    """Which tiles do not reach past the end."""
    rows = (jnp.arange(tiling.row_tiles) + 1)[:, None] * tiling.tile_rows <= tiling.rows
    return rows & ((column_tiles + 1) * tiling.tile_columns <= tiling.columns)


def _of_blocks(values: Array, reduce: Callable[..., Array], shape: tuple[int, int], block: Sequence[int]) -> Array:
    """What is said of tiles of problems, of blocks of problems; where it does not vary blocks stay 1."""
    lead = (1,) * (len(block) + 2 - values.ndim) + values.shape[:-2]
    parts = [size if size == 1 else size // part for size, part in zip(lead, block, strict=True)]
    within = [1 if size == 1 else part for size, part in zip(lead, block, strict=True)]
    values = jnp.broadcast_to(values, (*values.shape[:-2], *shape))
    split = values.reshape(*(n for pair in zip(parts, within, strict=True) for n in pair), *shape)
    return reduce(split, axis=tuple(range(1, 2 * len(parts), 2)))


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
    """For every row tile, the column tiles in the order of the visit, how many are full, and how many not empty.

    Of a block table also which entry of the list each visit is to.
    """

    order: Int[Array, "*blocks row_tiles visits"] | None
    full: Int[Array, "*blocks row_tiles"] | None
    live: Int[Array, "*blocks row_tiles"] | None
    column_tiles: int
    entries: Int[Array, "*blocks row_tiles visits"] | None = None

    @staticmethod
    def of(mask: Mask | None, tiling: Tiling, block: Sequence[int]) -> "Schedule":
        table, rest = split_table(mask)
        if table is not None:
            return Schedule._of_table(table, rest, tiling, block)
        even = tiling.rows % tiling.tile_rows == 0 and tiling.columns % tiling.tile_columns == 0
        if mask is None and even:
            return Schedule(None, None, None, tiling.column_tiles)
        some, every = classes(mask, tiling, block)
        kind = jnp.where(every, 0, jnp.where(some, 1, 2))
        order = jnp.argsort(kind, axis=-1, stable=True).astype(jnp.int32)
        return Schedule(order, (kind == 0).sum(-1), (kind < 2).sum(-1), tiling.column_tiles)

    @staticmethod
    def _of_table(table: BlockTable, rest: Mask | None, tiling: Tiling, block: Sequence[int]) -> "Schedule":
        """Blocks of problems have one list: `block` is 1 where lists vary."""
        rows, columns = -(-table.rows // tiling.tile_rows), -(-table.columns // tiling.tile_columns)

        def of_tiles(entries: Array) -> Shaped[Array, "*problems row_tiles visits"]:
            """Of the row tiles and column tiles in blocks, what is said of blocks."""
            repeated = jnp.repeat(jnp.repeat(entries, columns, axis=-1), rows, axis=-2)
            return repeated[..., : tiling.row_tiles, :]

        indices = without_ones(table.indices)
        visits = indices.shape[-1] * columns
        tiles = of_tiles(indices) * columns + jnp.arange(visits) % columns
        there = of_tiles(table.live(-(-tiling.columns // table.columns))) & (tiles < tiling.column_tiles)
        tiles = jnp.clip(tiles, 0, tiling.column_tiles - 1)
        some, every = jnp.ones((1, 1), bool), jnp.ones((1, 1), bool)
        if rest is not None:
            some, every = rest.coverage(replace(tiling, listed=tiles))
        every = every & _inside(tiling, tiles)
        shape = (tiling.row_tiles, visits)
        some, every, there = (
            _of_blocks(values, reduce, shape, block)
            for values, reduce in ((some, jnp.any), (every, jnp.all), (there, jnp.any))
        )
        kind = jnp.where(there & some, jnp.where(every, 0, 1), 2)
        order = jnp.argsort(kind, axis=-1, stable=True).astype(jnp.int32)
        tiles = jnp.take_along_axis(jnp.broadcast_to(tiles, kind.shape), order, axis=-1)
        return Schedule(tiles, (kind == 0).sum(-1), (kind < 2).sum(-1), tiling.column_tiles, order // columns)

    @property
    def masked(self) -> bool:
        """Whether there may be partial tiles."""
        return self.order is not None

    def column(self, problem: Sequence[Array], row: Array, visit: Array) -> Array:
        """The column tile of a visit."""
        return visit if self.order is None else self.order[(*_within(self.order, problem), row, visit)]

    def entry(self, problem: Sequence[Array], row: Array, visit: Array) -> Array:
        """The entry of a block table that a visit is to."""
        return visit if self.entries is None else self.entries[(*_within(self.entries, problem), row, visit)]

    def counts(self, problem: Sequence[Array], row: Array) -> tuple[Array | int, Array | int]:
        """Visits to full tiles, and all visits."""
        if self.full is None or self.live is None:
            return self.column_tiles, self.column_tiles
        place = (*_within(self.full, problem), row)
        return self.full[place], self.live[place]


def _within(array: Array, problem: Sequence[Array]) -> list[Array | int]:
    return [0 if size == 1 else index for size, index in zip(array.shape, problem, strict=False)]
