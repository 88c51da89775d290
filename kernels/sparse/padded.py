"""Blocks that no tile of a kernel divides, each with padding behind it that nothing reads and that reads nothing."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from kernels import gpu_blocks, tpu_layout
from kernels.masks.algebra import Coverage, Mask, Positions, Tiling, pytree
from kernels.masks.block_table import BlockTable, split_table
from kernels.masks.positions import Placed, known_from_corners
from kernels.problem import Problem

LEAST = {"gpu": (gpu_blocks.LEAST, gpu_blocks.LEAST), "tpu": (tpu_layout.SUBLANES, tpu_layout.LANES)}
"""The least tile of each implementation that needs one: queries, and keys."""


@dataclass(frozen=True)
class Spread:
    """Where tokens in blocks lie once each block has padding behind it.

    Attributes:
      length: tokens; the last block may be short of some.
      block: tokens of a block.
      padded: of a block with its padding.
    """

    length: int
    block: int
    padded: int

    @staticmethod
    def of(length: int, block: int, unit: int) -> "Spread":
        """Up to whole units, where there are several blocks that are not."""
        return Spread(length, block, block if length <= block else -(-block // unit) * unit)

    @property
    def apart(self) -> bool:
        """Whether anything moves."""
        return self.padded > self.block

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block)

    @property
    def size(self) -> int:
        """Places, with the padding."""
        return self.blocks * self.padded if self.apart else self.length

    def spread(self, array: Shaped[Array, "..."], axis: int) -> Shaped[Array, "..."]:
        """What is said of tokens along that axis, in their places, with 0 in the padding."""
        if not self.apart or array.shape[axis] == 1:
            return array
        array = jnp.moveaxis(array, axis, 0)
        rest = [(0, 0)] * (array.ndim - 1)
        array = jnp.pad(array, [(0, self.blocks * self.block - self.length), *rest])
        array = array.reshape(self.blocks, self.block, *array.shape[1:])
        array = jnp.pad(array, [(0, 0), (0, self.padded - self.block), *rest])
        return jnp.moveaxis(array.reshape(self.size, *array.shape[2:]), 0, axis)

    def gathered(self, array: Shaped[Array, "..."], axis: int) -> Shaped[Array, "..."]:
        """What is said of places along that axis, of the tokens there."""
        if not self.apart:
            return array
        array = jnp.moveaxis(array, axis, 0)
        array = array.reshape(self.blocks, self.padded, *array.shape[1:])[:, : self.block]
        return jnp.moveaxis(array.reshape(-1, *array.shape[2:])[: self.length], 0, axis)

    def tokens(self, places: Positions) -> tuple[Positions, Bool[Array, "..."]]:
        """Which tokens are there, and whether any is."""
        if not self.apart:
            return places, places < self.length
        # Places are not negative, and kernels have no division that rounds down.
        padded = jnp.int32(self.padded)
        block, within = jax.lax.div(places, padded), jax.lax.rem(places, padded)
        token = block * self.block + within
        return token, (within < self.block) & (token < self.length)

    def span(self, first: Positions, last: Positions) -> tuple[Positions, Positions]:
        """The first and the last token from one place to another; there is none if the last is before the first."""
        if not self.apart:
            return first, jnp.minimum(last, self.length - 1)
        tokens = [
            place // self.padded * self.block + jnp.minimum(place % self.padded, self.block - behind)
            for place, behind in ((first, 0), (last, 1))
        ]
        return tokens[0], jnp.minimum(tokens[1], self.length - 1)


@pytree
class InPlaces(Mask):
    """A mask on a grid (None: everything) for tokens that are spread, which says nothing of padding."""

    mask: Mask | None
    rows: Spread
    columns: Spread

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        (row, is_row), (column, is_column) = self.rows.tokens(rows), self.columns.tokens(columns)
        some = is_row & is_column
        return some if self.mask is None else some & self.mask.allowed(row, column)

    def coverage(self, tiling: Tiling) -> Coverage:
        """From the tokens at the corners of tiles where the mask can tell from them; else that tiles may have some."""
        corners = tiling.corners()
        (first_row, first_column), (last_row, last_column) = corners[0], corners[-1]
        rows, columns = self.rows.span(first_row, last_row), self.columns.span(first_column, last_column)
        some = (rows[0] <= rows[1]) & (columns[0] <= columns[1])
        every = (rows[1] - rows[0] == last_row - first_row) & (columns[1] - columns[0] == last_column - first_column)
        if self.mask is None:
            return some, every
        if not known_from_corners(self.mask):
            return some, jnp.zeros_like(every)
        sizes = (tiling.rows, tiling.columns, tiling.tile_rows, tiling.tile_columns)
        placed = Placed(*sizes, tiling.problem_axes, tiling.listed, spans=(rows, columns))
        by_mask = self.mask.coverage(placed)
        return some & by_mask[0], every & by_mask[1]


def in_whole_tiles(problem: Problem) -> tuple[Problem, Spread]:
    """The problem with blocks that tiles of its implementation divide, and where its rows are then.

    As it is where blocks are made of tiles already, or the implementation takes any.
    """
    table, rest = split_table(problem.mask)
    if table is None:
        raise ValueError(f"mask must have a block table; got {type(problem.mask)}")
    grid = problem.grid
    units = LEAST.get(problem.implementation or "", (1, 1))
    rows, columns = (
        Spread.of(size, block, unit) for size, block, unit in zip(grid.sizes, table.blocks, units, strict=True)
    )
    if not rows.apart and not columns.apart:
        return problem, rows

    def leaf(array: Array) -> Array:
        return columns.spread(rows.spread(array, 3), 4)

    return replace(
        problem,
        query=rows.spread(problem.query, 3),
        key=columns.spread(problem.key, 4),
        value=columns.spread(problem.value, 4),
        mask=BlockTable(table.indices, table.counts, rows=rows.padded, columns=columns.padded)
        & InPlaces(jax.tree.map(leaf, rest), rows, columns),
        grid=replace(grid, rows=rows.size, columns=columns.size),
    ), rows
