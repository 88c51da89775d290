"""The tiled loop: problems, then row tiles, then the column tiles that the mask leaves, on any platform.

What is done in a tile is the caller's: flash attention, a sum over pairs, a running top-k. Memory is that of the
operands and outputs and a few tiles; tiles that the mask leaves empty are not visited, and full ones are not masked.
The order of tiles is fixed, so results repeat to the bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from kernels.masks.algebra import Mask, Tiling
from kernels.schedule import Schedule, Tiles, blocks, fit
from kernels.shapes import over_problems

Index = Sequence[Any]


@dataclass(frozen=True)
class Pairs:
    """The pairs of one tile: the positions of its rows and columns, and which pairs are allowed (None: all)."""

    rows: Int[Array, "rows 1"]
    columns: Int[Array, "1 columns"]
    allowed: Bool[Array, "rows columns"] | None


@dataclass(frozen=True)
class Output:
    """An array that a loop makes: its shape on the grid, and dtype. It is summed over every axis where it has 1."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class _Cut:
    """How arrays on the grid are cut into tiles."""

    axes: int
    block: tuple[int, ...]
    tile: Tiles

    def place(self, shape: Sequence[int], problem: Index, row: Array | int, column: Array | int) -> tuple[Any, Any]:
        """Start and extent of a tile in an array of that shape; the array does not vary where it has 1."""
        grid, features = shape[: self.axes + 2], shape[self.axes + 2 :]
        widths = (*self.block, self.tile.rows, self.tile.columns)
        places = zip(grid, (*problem, row, column), widths, strict=True)
        start = [jnp.int32(0 if size == 1 else index * width) for size, index, width in places]
        extent = [1 if size == 1 else width for size, width in zip(grid, widths, strict=True)]
        return (*start, *(jnp.int32(0) for _ in features)), (*extent, *features)

    def read(self, array: Array, problem: Index, row: Array | int, column: Array | int) -> Array:
        start, extent = self.place(array.shape, problem, row, column)
        return lax.dynamic_slice(array, start, extent)

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
        want = (tiling.row_tiles * self.tile.rows, tiling.column_tiles * self.tile.columns)
        behind = [
            0 if have == 1 else full - have for have, full in zip(array.shape[self.axes :][:2], want, strict=True)
        ]
        if not any(behind):
            return array
        widths = [(0, 0)] * self.axes + [(0, more) for more in behind] + [(0, 0)] * (array.ndim - self.axes - 2)
        return jnp.pad(array, widths)


def unread_to_zero(value: Array, allowed: Bool[Array, "rows columns"]) -> Array:
    """A tile of (rows or 1, columns or 1, ...) without what no allowed pair touches: 0 · NaN would be NaN."""
    if value.shape[:2] == (1, 1) or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    touched = allowed
    for axis in (0, 1):
        if value.shape[axis] == 1:
            touched = touched.any(axis=axis, keepdims=True)
    return jnp.where(touched.reshape(*touched.shape, *(1 for _ in value.shape[2:])), value, 0)


def tiled_loop(
    step: Callable[..., tuple[Any, list[Array]]],
    initial: Callable[[int], Any],
    finish: Callable[[Any], list[Array]],
    operands: Sequence[Array],
    mask: Mask | None,
    sizes: tuple[int, int],
    outputs: Sequence[Output],
    *,
    axes: int,
    tiles: Tiles,
) -> list[Array]:
    """Visits every tile that the mask leaves, row tile by row tile.

    Args:
      step: `step(pairs, state, *tiles)` gives the row tile's new state, and what it adds to each of those outputs that
        vary along columns. It sees one problem; a tile has the operand's axes from the rows on, with 1 where it
        does not vary.
      initial: the state of a row tile of that many rows, for one problem.
      finish: what a row tile's final state adds to each of the outputs that do not vary along columns.
      operands: arrays on the grid: `axes` problem axes, rows, columns, features.
      mask: a mask on the grid.
      sizes: rows and columns.
    """
    if 0 in sizes or any(0 in output.shape for output in outputs):
        return [jnp.zeros(output.shape, output.dtype) for output in outputs]
    leaves, structure = jax.tree.flatten(mask)
    problems = jnp.broadcast_shapes(*(array.shape[:axes] for array in (*operands, *leaves, *outputs)))
    tile = Tiles(fit(sizes[0], tiles.rows), fit(sizes[1], tiles.columns))
    block = blocks(problems, max(1, tiles.rows * tiles.columns // (tile.rows * tile.columns)))
    tiling, cut = Tiling(*sizes, tile.rows, tile.columns, axes), _Cut(axes, block, tile)
    schedule = Schedule.of(mask, tiling, block)
    whole = [cut.pad(array, tiling) for array in (*operands, *leaves)]
    by_row = [array.shape[axes + 1] == 1 for array in whole]
    from_state = [output.shape[axes + 1] == 1 for output in outputs]
    once = [output.shape[: axes + 2] == (*problems, sizes[0], 1) for output in outputs]

    def row_tile(problem: Index, row: Array, made: Sequence[Array]) -> tuple[Array, ...]:
        rows = row * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)[:, None]
        fixed = [
            cut.read(array, problem, row, 0) if still else array for array, still in zip(whole, by_row, strict=True)
        ]
        state, state_structure = jax.tree.flatten(initial(tile.rows))
        state = [jnp.broadcast_to(leaf, (*block, *leaf.shape)) for leaf in state]

        def visit(masked: bool, number: Array, held: tuple[Any, Any]) -> tuple[Any, Any]:
            column = schedule.column(problem, row, number)
            columns = column * tile.columns + jnp.arange(tile.columns, dtype=jnp.int32)[None]

            def one(*arrays: Array) -> tuple[list[Array], list[Array]]:
                state, values = arrays[: len(held[0])], arrays[len(held[0]) :]
                values, mask_leaves = values[: len(operands)], values[len(operands) :]
                allowed = None
                if masked:
                    allowed = (rows < sizes[0]) & (columns < sizes[1])
                    if mask is not None:
                        allowed &= structure.unflatten(mask_leaves).allowed(rows, columns)
                    values = [unread_to_zero(value, allowed) for value in values]
                state, added = step(Pairs(rows, columns, allowed), state_structure.unflatten(state), *values)
                return jax.tree.leaves(state), added

            tiles_here = [
                array if still else cut.read(array, problem, row, column)
                for array, still in zip(fixed, by_row, strict=True)
            ]
            state, added = over_problems(one, [*held[0], *tiles_here], axes)
            parts, made = iter(added), list(held[1])
            for which, here in enumerate(from_state):
                if not here:
                    made[which] = cut.add(made[which], next(parts), problem, row, column, new=False)
            return state, made

        full, live = schedule.counts(problem, row)
        held = lax.fori_loop(0, full, lambda number, held: visit(False, number, held), (state, list(made)))
        if schedule.masked:
            held = lax.fori_loop(full, live, lambda number, held: visit(True, number, held), held)
        state, made = held[0], list(held[1])
        parts = iter(over_problems(lambda *leaves: finish(state_structure.unflatten(leaves)), state, axes))
        for number, here in enumerate(from_state):
            if here:
                made[number] = cut.add(made[number], next(parts), problem, row, 0, new=once[number])
        return tuple(made)

    counts = [total // part for total, part in zip(problems, block, strict=True)]

    def at_problem(number: Array, made: Sequence[Array]) -> tuple[Array, ...]:
        problem = jnp.unravel_index(number, counts) if counts else ()
        return lax.fori_loop(0, tiling.row_tiles, lambda row, made: row_tile(problem, row, made), made)

    start = []
    for output, only in zip(outputs, once, strict=True):
        # What is added to is kept in float32 or wider until the end.
        dtype = output.dtype if only else jnp.promote_types(output.dtype, jnp.float32)
        start.append(cut.pad(jnp.zeros(output.shape, dtype), tiling))
    made = lax.fori_loop(0, math.prod(counts), at_problem, tuple(start))
    inside = [lax.slice(array, (0,) * array.ndim, output.shape) for array, output in zip(made, outputs, strict=True)]
    return [array.astype(output.dtype) for array, output in zip(inside, outputs, strict=True)]
