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

from kernels.cut import Cut, Entries, Held, Index
from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import split_table
from kernels.masks.positions import At, keys_in_reach
from kernels.schedule import Schedule, Tiles, blocks, fit, fit_within_blocks
from kernels.shapes import over_problems, per_entry

PAIRS_AT_ONCE = 256 * 256
"""Where a tile of the loop's own choice has fewer pairs, those of several problems are done together."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of one tile: the positions of its rows and columns, and which pairs are allowed (None: all)."""

    rows: Int[Array, "rows 1"]
    columns: Int[Array, "1 columns"]
    allowed: Bool[Array, "rows columns"] | None


@dataclass(frozen=True)
class Output:
    """An array that a loop makes: its shape on the grid, and dtype. It is summed over every axis where it has 1.

    One with a number for each entry of a block table (`kernels.shapes.per_entry`) is summed over what the entry reads.
    """

    shape: tuple[int, ...]
    dtype: Any

    def along_columns(self, axes: int) -> bool:
        """Whether it has several results for a row tile."""
        return self.shape[axes + 1] > 1 or per_entry(self.shape, axes)


def unread_to_zero(value: Array, allowed: Bool[Array, "rows columns"]) -> Array:
    """A tile of (rows or 1, columns or 1, ...) without what no allowed pair touches: 0 · NaN would be NaN."""
    if value.shape[:2] == (1, 1) or not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    touched = allowed
    for axis in (0, 1):
        if value.shape[axis] == 1:
            touched = touched.any(axis=axis, keepdims=True)
    return jnp.where(touched.reshape(*touched.shape, *(1 for _ in value.shape[2:])), value, 0)


def default_tiles(mask: Mask | None) -> Tiles:
    """256 x 256, and less where that would be wasted.

    Tokens of a tile that stand at given positions may be far apart, so that few such tiles are empty; and where
    queries read few keys, half as many or fewer in a tile leave less of it masked.
    """
    leaves = jax.tree.leaves(mask, is_leaf=lambda node: isinstance(node, At))
    reach = keys_in_reach(mask)
    longest = 128 if any(isinstance(leaf, At) for leaf in leaves) else 256
    size = longest if reach is None else max(64, min(longest, reach // 2))
    return Tiles(size, size)


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
    tiles: Tiles | None,
) -> list[Array]:
    """Visits every tile that the mask leaves, row tile by row tile.

    Args:
      step: `step(pairs, state, *tiles)` gives the row tile's new state, and what it adds to each of those outputs that
        vary along columns. It sees one problem; a tile has the operand's axes from the rows on, with 1 where it
        does not vary.
      initial: the state of a row tile of that many rows, for one problem.
      finish: what a row tile's final state adds to each of the outputs that do not vary along columns.
      operands: arrays on the grid: `axes` problem axes, rows, columns, features.
      mask: a mask on the grid; if it has a block table, tiles are those of its lists.
      sizes: rows and columns.
      tiles: what is done at once; None: what suits the mask.
    """
    if 0 in sizes or any(0 in output.shape for output in outputs):
        return [jnp.zeros(output.shape, output.dtype) for output in outputs]
    whole_mask = mask
    table, mask = split_table(mask)
    pairs = PAIRS_AT_ONCE if tiles is None else tiles.rows * tiles.columns
    tiles = tiles or default_tiles(whole_mask)
    leaves, structure = jax.tree.flatten(mask)
    arrays = (*operands, *outputs, *jax.tree.leaves(whole_mask))
    problems = jnp.broadcast_shapes(*(array.shape[:axes] for array in arrays))
    tile = Tiles(fit(sizes[0], tiles.rows), fit(sizes[1], tiles.columns))
    together = problems
    if table is not None:
        tile = fit_within_blocks(table, tiles, sizes)
        lists = jnp.broadcast_shapes(*(array.shape[:axes] for array in jax.tree.leaves(table)))
        together = tuple(size if same == 1 else 1 for size, same in zip(problems, lists, strict=True))
    block = blocks(together, max(1, pairs // (tile.rows * tile.columns)))
    tiling, cut = Tiling(*sizes, tile.rows, tile.columns, axes), Cut(axes, block, tile)
    schedule = Schedule.of(whole_mask, tiling, block)
    entries = Entries(cut, 1 if table is None else -(-table.rows // tile.rows))
    padded = [cut.pad(array, tiling) for array in (*operands, *leaves)]
    gates = [per_entry(array.shape, axes) for array in operands] + [False] * len(leaves)
    by_row = [array.shape[axes + 1] == 1 and not gate for array, gate in zip(padded, gates, strict=True)]
    reads = [Held(array.shape, problems, block) for array in padded]
    whole = [place.hold(array) for place, array in zip(reads, padded, strict=True)]
    from_state = [not output.along_columns(axes) for output in outputs]
    once = [output.shape[: axes + 2] == (*problems, sizes[0], 1) for output in outputs]

    def row_tile(problem: Index, opened: Sequence[Array], row: Array, made: Sequence[Array]) -> tuple[Array, ...]:
        rows = row * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)[:, None]
        fixed = [
            cut.read(array, problem, row, 0) if still else array for array, still in zip(opened, by_row, strict=True)
        ]
        state, state_structure = jax.tree.flatten(initial(tile.rows))
        state = [jnp.broadcast_to(leaf, (*block, *leaf.shape)) for leaf in state]

        def visit(masked: bool, number: Array, held: tuple[Any, Any]) -> tuple[Any, Any]:
            column, entry = schedule.column(problem, row, number), schedule.entry(problem, row, number)
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
                array
                if still
                else (entries.read(array, problem, row, entry) if gate else cut.read(array, problem, row, column))
                for array, still, gate in zip(fixed, by_row, gates, strict=True)
            ]
            state, added = over_problems(one, [*held[0], *tiles_here], axes)
            parts, made = iter(added), list(held[1])
            for which, here in enumerate(from_state):
                if per_entry(outputs[which].shape, axes):
                    made[which] = entries.add(made[which], next(parts), problem, row, entry)
                elif not here:
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
        opened = [place.open(array, problem) for place, array in zip(reads, whole, strict=True)]
        own = tuple(place.begin(array) for place, array in zip(writes, made, strict=True))
        own = lax.fori_loop(0, tiling.row_tiles, lambda row, own: row_tile(problem, opened, row, own), own)
        return tuple(place.close(array, part, problem) for place, array, part in zip(writes, made, own, strict=True))

    # What is added to is kept in float32 or wider until the end.
    dtypes = [
        output.dtype if only else jnp.promote_types(output.dtype, jnp.float32)
        for output, only in zip(outputs, once, strict=True)
    ]
    zeros = [cut.pad(jnp.zeros(output.shape, dtype), tiling) for output, dtype in zip(outputs, dtypes, strict=True)]
    writes = [Held(array.shape, problems, block) for array in zeros]
    start = tuple(place.hold(array) for place, array in zip(writes, zeros, strict=True))
    made = lax.fori_loop(0, math.prod(counts), at_problem, start)
    made = [place.release(array) for place, array in zip(writes, made, strict=True)]
    inside = [lax.slice(array, (0,) * array.ndim, output.shape) for array, output in zip(made, outputs, strict=True)]
    return [array.astype(output.dtype) for array, output in zip(inside, outputs, strict=True)]
