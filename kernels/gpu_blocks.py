"""How arrays on the grid are read by Pallas kernels on a GPU, and over which tiles each program of a kernel goes.

What Triton wants: arrays whose sizes are powers of 2, those of matrix products at least 16. Arrays stay as they are in
memory; what is read beyond their ends is masked and 0. A program has the results of one tile for one problem, and
goes over the tiles of the other kind, and the problems that are summed over, in a loop that carries its sums.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool

from kernels.entries import shape_in_tiles, to_tiles
from kernels.gpu_compact import COLUMNS, ROWS, Compact
from kernels.layout import GridArray
from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import BlockTable, split_table
from kernels.masks.elementwise import not_elementwise
from kernels.schedule import Tiles, cut_blocks, place_in_table, visit_table

LEAST = 16
"""The least size in a matrix product."""
WIDEST = 256
"""Features that fit in registers and shared memory."""

Ids = Sequence[Any]


@dataclass(frozen=True)
class Launch:
    """How a kernel is cut and compiled: its tiles, warps of a program, and how far loads run ahead."""

    tiles: Tiles
    warps: int
    stages: int


def power(size: int) -> int:
    """The next power of 2 that a matrix product takes."""
    return max(LEAST, 1 << (size - 1).bit_length())


def fit(sizes: tuple[int, int], tiles: Tiles, table: BlockTable | None, one: bool = False) -> Tiles:
    """Tiles as Triton wants them, not above what is needed for the sizes, nor longer than divides a table's blocks.

    `one`: a tile of a size of 1 is 1.
    """
    wanted = [tiles.rows, tiles.columns]
    if table is not None:
        # The largest power of 2 that divides the block, where there are several blocks.
        parts = [block & -block if size > block else size for size, block in zip(sizes, table.blocks, strict=True)]
        wanted = [min(tile, part) for tile, part in zip(wanted, parts, strict=True)]
    rows, columns = (
        1 if one and size == 1 else min(power(tile), power(size)) for size, tile in zip(sizes, wanted, strict=True)
    )
    return Tiles(rows, columns)


@dataclass(frozen=True)
class Layout(GridArray):
    """How an array on the grid is cut into tiles."""

    ones: int = 0
    """How many axes of 1 a mask's array has behind these."""

    @staticmethod
    def of_leaf(array: Any, tiling: Tiling) -> "Layout":
        """Of an array of a mask, whose features are no matrix."""
        shape, end = tuple(array.shape), tiling.problem_axes + 2
        ones = len(shape) - end if math.prod(shape[end:]) == 1 else 0
        return Layout(shape[: len(shape) - ones], array.dtype, tiling, None, ones)

    @property
    def unsupported(self) -> str | None:
        if self.features and self.features[-1] > WIDEST:
            return f"{self.features[-1]} features, more than {WIDEST}"
        return super().unsupported

    @property
    def traced(self) -> jax.ShapeDtypeStruct:
        """What a tile function or mask is traced with."""
        dtype = jnp.float32 if jnp.issubdtype(self.dtype, jnp.floating) else self.dtype
        rows, columns = (size if along else 1 for size, along in zip((ROWS, COLUMNS), self.along, strict=True))
        return jax.ShapeDtypeStruct((rows, columns, *map(power, self.features), *(1,) * self.ones), dtype)

    @property
    def _extents(self) -> list[tuple[int, int]]:
        """Of each axis in memory behind the problems: how many there are, and how many a tile has."""
        sizes = ((self.tiling.rows, self.tiling.tile_rows), (self.tiling.columns, self.tiling.tile_columns))
        inner = [size for size, along in zip(sizes, self.along, strict=True) if along]
        return [*inner, *((size, power(size)) for size in self.features)]

    @property
    def _lead(self) -> list[int]:
        """The problem axes in memory."""
        return [size for size in self.shape[: self.axes] if size != 1]

    def to_memory(self, array: Array) -> Array:
        array = array.astype(jnp.int8) if self.dtype == jnp.bool_ else array
        return array.reshape(self.memory_shape)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return (*self._lead, *self._tiles, *(size for size, _ in self._extents))

    @property
    def _tiles(self) -> tuple[int, ...]:
        """The axes in memory of row tiles and column tiles, where there is a number for each."""
        return self.shape[-3:-1] if self.of_entries else ()

    @property
    def tile_shape(self) -> tuple[int, ...]:
        return tuple(tile for _, tile in self._extents)

    @property
    def spec(self) -> pl.BlockSpec:
        """All of it, as if it had whole tiles."""
        inner = [-(-size // tile) * tile for size, tile in self._extents]
        shape = (*self._lead, *self._tiles, *inner)
        return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))

    def place(self, problem: Ids, row: Any, column: Any) -> tuple[Any, ...]:
        """The index of a tile in memory."""
        lead = [index for size, index in zip(self.shape[: self.axes], problem, strict=True) if size != 1]
        starts = [index for index, along in zip((row, column), self.along, strict=True) if along]
        inner = zip_longest(starts, self.tile_shape, fillvalue=0)
        tile = (row, column) if self.of_entries else ()
        return (*lead, *tile, *(pl.ds(start * tile, tile) for start, tile in inner))

    def inside(self, row: Any, column: Any, whole: bool = False) -> Bool[Array, "..."] | None:
        """Which elements of a tile there are; None: all. `whole`: rows and columns are known to be."""
        starts = [index for index, along in zip((row, column), self.along, strict=True) if along]
        found = None
        for axis, (size, tile) in enumerate(self._extents):
            if size % tile == 0 or (whole and axis < len(starts)):
                continue
            start = starts[axis] * tile if axis < len(starts) else 0
            here = lax.broadcasted_iota(jnp.int32, self.tile_shape, axis) < size - start
            found = here if found is None else found & here
        return found

    def read(
        self, ref: Any, problem: Ids, row: Any, column: Any, whole: bool = False, only: Bool[Array, " n"] | None = None
    ) -> Array:
        """In the kernel: a tile, with 0 for what there is not, and for rows or columns other than `only` some."""
        place, inside = ref.at[self.place(problem, row, column)], self.inside(row, column, whole)
        if only is not None:
            only = jnp.broadcast_to(only[:, None], self.tile_shape) if self.features else only
            inside = only if inside is None else inside & only
        value = triton.load(place) if inside is None else triton.load(place, mask=inside, other=0)
        return value != 0 if self.dtype == jnp.bool_ else value

    def write(self, ref: Any, value: Array, problem: Ids, row: Any, column: Any) -> None:
        """In the kernel: a tile."""
        place, inside = ref.at[self.place(problem, row, column)], self.inside(row, column)
        triton.store(place, value.astype(ref.dtype), mask=inside)


@dataclass(frozen=True)
class Walk:
    """The programs of a kernel, and what each of them visits.

    `own` says for which tiles there are results: rows, columns, or both; the others are visited in the order of the
    table (`kernels.schedule.visit_table`), and for each of the problems that are summed over.
    """

    problems: tuple[int, ...]
    summed: tuple[int, ...]
    own: tuple[bool, bool]
    tiling: Tiling
    table: tuple[int, ...] | None
    """Sizes of the problem axes of the table; None where there is none: all tiles are full."""

    @property
    def _kept(self) -> list[int]:
        return [axis for axis in range(len(self.problems)) if axis not in self.summed]

    @property
    def _tiles(self) -> tuple[int, int]:
        return self.tiling.row_tiles, self.tiling.column_tiles

    @property
    def grid(self) -> tuple[int, int]:
        """Own tiles, problems."""
        tiles = math.prod(count for count, own in zip(self._tiles, self.own, strict=True) if own)
        return tiles, math.prod(self.problems[axis] for axis in self._kept)

    def program(self) -> tuple[list[Any], Any, Any]:
        """In the kernel: the problem, where it is not summed over, and the own row tile and column tile."""
        problem: list[Any] = [0] * len(self.problems)
        kept = self._kept
        for axis, index in zip(kept, _unravel(pl.program_id(1), [self.problems[axis] for axis in kept]), strict=True):
            problem[axis] = index
        number = pl.program_id(0)
        if all(self.own):
            return problem, *_unravel(number, self._tiles)
        # The last rows have most to read where the mask is causal, so they start first.
        return (problem, self._tiles[0] - 1 - number, 0) if self.own[0] else (problem, 0, number)

    def run(
        self,
        table: Any,
        program: tuple[list[Any], Any, Any],
        state: Any,
        open_problem: Callable[[list[Any]], Callable[[bool, Any, Any, Any], Any]],
    ) -> Any:
        """In the kernel: the state after all visits, each `visit(masked, row, column, state)` of an open problem."""
        fixed, own_row, own_column = program

        def at_problem(number: Any, state: Any) -> Any:
            problem = list(fixed)
            sizes = [self.problems[axis] for axis in self.summed]
            for axis, index in zip(self.summed, _unravel(number, sizes), strict=True):
                problem[axis] = index
            visit = open_problem(problem)
            full, live, other = self._visits(table, problem, own_row, own_column)

            def step(masked: bool) -> Callable[[Any, Any], Any]:
                def body(number: Any, state: Any) -> Any:
                    row, column = own_row, own_column
                    if not all(self.own):
                        row, column = (row, other(number)) if self.own[0] else (other(number), column)
                    return visit(masked, row, column, state)

                return body

            state = lax.fori_loop(0, full, step(False), state)
            return state if table is None else lax.fori_loop(full, live, step(True), state)

        count = math.prod(self.problems[axis] for axis in self.summed)
        return at_problem(0, state) if count == 1 else lax.fori_loop(0, count, at_problem, state)

    def _visits(self, table: Any, problem: Ids, row: Any, column: Any) -> tuple[Any, Any, Callable[[Any], Any]]:
        """How many visits to full tiles, how many in all, and to which tile each goes."""
        others = 1 if all(self.own) else self._tiles[1] if self.own[0] else self._tiles[0]
        if table is None:
            return others, others, lambda number: number
        mine = [pair for pair, own in zip(zip(self._tiles, (row, column), strict=True), self.own, strict=True) if own]
        start = place_in_table(self.table or (), problem, *zip(*mine, strict=True))
        if all(self.own):
            kind = table[start]
            return (kind == 0).astype(jnp.int32), (kind < 2).astype(jnp.int32), lambda number: number
        start = start * (others + 2)
        return table[start], table[start + 1], lambda number: table[start + 2 + number]


def _unravel(number: Any, sizes: Sequence[int]) -> list[Any]:
    """Indices of the element of that number; as remainders, since numbers are not negative."""
    found = []
    for size in reversed(sizes):
        found.append(0 if size == 1 else lax.rem(number, jnp.int32(size)))
        number = number if size == 1 else lax.div(number, jnp.int32(size))
    return found[::-1]


@dataclass(frozen=True)
class Inputs:
    """Operands of a kernel and behind them the leaves of its mask, but for a block table, which says where to go."""

    operands: tuple[Layout, ...]
    leaves: tuple[Layout, ...]
    structure: Any
    tiling: Tiling
    table: BlockTable | None

    @staticmethod
    def of(
        operands: Sequence[Any], mask: Mask | None, tiling: Tiling, varies: Sequence[tuple[bool, bool]] = ()
    ) -> "Inputs":
        """Of arrays or their shapes; how the first operands vary can be said."""
        table, rest = split_table(mask)
        leaves, structure = jax.tree.flatten(rest)
        shapes = [shape_in_tiles(array, table, tiling) for array in operands]
        layouts = tuple(Layout(s, a.dtype, tiling, v) for s, a, v in zip_longest(shapes, operands, varies))
        return Inputs(layouts, tuple(Layout.of_leaf(leaf, tiling) for leaf in leaves), structure, tiling, table)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        return (*self.operands, *self.leaves)

    def unsupported(self, mask: Mask | None, outputs: Sequence[Layout]) -> str | None:
        """Why a kernel cannot have these inputs, that mask or those outputs; from shapes alone."""
        reasons = [layout.unsupported for layout in (*self.operands, *outputs)]
        for leaf in self.leaves:
            if leaf.features:
                reasons.append(f"a mask with an array of shape {leaf.shape[leaf.axes :]} for each problem")
        reasons.append(cut_blocks(self.table, self.tiling))
        foreign = not_elementwise(split_table(mask)[1], self.tiling.problem_axes)
        if foreign is not None:
            reasons.append(f"a mask that takes more than arithmetic on positions and its arrays: {foreign}")
        return next((reason for reason in reasons if reason is not None), None)

    def allowed(self, flipped: bool) -> Callable[[Any, Any, Sequence[Array]], Any]:
        """Of row tile, column tile and tiles of the leaves: which pairs are allowed; None: all."""
        tiling = self.tiling
        tile = (tiling.tile_rows, tiling.tile_columns)
        pairs = traced_pairs(tiling)

        def function(first_row: Any, first_column: Any, *leaves: Any) -> Any:
            rows = first_row + lax.broadcasted_iota(jnp.int32, (pairs[0], 1), 0)
            columns = first_column + lax.broadcasted_iota(jnp.int32, (1, pairs[1]), 1)
            found = jnp.ones((1, 1), bool)
            if tiling.rows % tiling.tile_rows:
                found = found & (rows < tiling.rows)
            if tiling.columns % tiling.tile_columns:
                found = found & (columns < tiling.columns)
            mask = self.structure.unflatten(leaves)
            found = found if mask is None else found & mask.allowed(rows, columns)
            return jnp.broadcast_to(found, pairs)

        start = jax.ShapeDtypeStruct((), jnp.int32)
        compact = Compact.of(function, [start, start, *(leaf.traced for leaf in self.leaves)], tile, flipped=flipped)

        def evaluate(row: Any, column: Any, leaves: Sequence[Array]) -> Any:
            starts = (jnp.int32(row * tile[0]), jnp.int32(column * tile[1]))
            return compact(*starts, *leaves)[0]

        return evaluate


def call(
    kernel: Any,
    walk: Walk,
    inputs: Inputs,
    operands: Sequence[Array],
    mask: Mask | None,
    outputs: Sequence[tuple[Any, pl.BlockSpec]],
    *,
    launch: Launch,
    name: str,
    interpret: Any,
) -> Sequence[Array]:
    """Run `kernel(table or None, *input refs, *output refs)` for those operands in every program of a walk."""
    tables = [] if walk.table is None else [visit_table(mask, walk.tiling, walk.own)]
    operands = [to_tiles(array, inputs.table, walk.tiling) for array in operands]
    arrays = [*operands, *jax.tree.leaves(split_table(mask)[1])]
    ready = [layout.to_memory(array) for layout, array in zip(inputs.layouts, arrays, strict=True)]
    return pl.pallas_call(
        kernel if tables else lambda *refs: kernel(None, *refs),
        out_shape=[shape for shape, _ in outputs],
        grid=walk.grid,
        in_specs=[*(pl.BlockSpec(table.shape, lambda *_: (0,)) for table in tables), *(i.spec for i in inputs.layouts)],
        out_specs=[spec for _, spec in outputs],
        compiler_params=triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
        interpret=interpret,
        name=name,
    )(*tables, *ready)


def traced_pairs(tiling: Tiling) -> tuple[int, int]:
    """The shape of the pairs of a tile in what is traced."""
    return ROWS if tiling.tile_rows > 1 else 1, COLUMNS if tiling.tile_columns > 1 else 1


def touched(allowed: Bool[Array, "..."], axis: int) -> Bool[Array, "..."]:
    """For which rows or columns, whichever are not along that axis, some pair is allowed."""
    return allowed if allowed.ndim < 2 else allowed.astype(jnp.int32).max(axis=axis) > 0
