"""In which order a Pallas kernel on a TPU walks over tiles, and what it is given at each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool

from kernels.entries import shape_in_tiles, to_tiles
from kernels.loop import Pairs
from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import BlockTable, split_table
from kernels.masks.elementwise import not_elementwise
from kernels.schedule import cut_blocks, place_in_table, visit_table, visit_table_size
from kernels.tpu_layout import LANES, Ids, Layout, Part, to_column

TABLE_LIMIT = 1 << 16
"""Numbers in a table of tiles: a quarter of a MiB of scalar memory."""


@dataclass(frozen=True)
class Walk:
    """The steps of a kernel's grid: problems and tiles that have results of their own, then all that is summed over.

    `own` says for which tiles there are results: rows, columns, or both; the others are visited in the order of the
    table (`kernels.schedule.visit_table`). Besides, results for the others may be kept whole for all tiles.
    """

    problems: tuple[int, ...]
    summed: tuple[int, ...]
    own: tuple[bool, bool]
    tiling: Tiling
    table: tuple[int, ...] | None
    """Sizes of the problem axes of the table; None where there is none: all tiles are full."""
    whole: tuple[int, ...] | None = None
    """Problem axes that the results kept whole are summed over, `summed` and perhaps more; None: there are none."""
    listed: int | None = None
    """The most column tiles that a row tile visits, where a block table bounds it."""

    @property
    def kept(self) -> list[int]:
        """Axes of problems that come before the own tiles; those that results kept whole are summed over last."""
        kept = [axis for axis, size in enumerate(self.problems) if size > 1 and axis not in self.summed]
        return sorted(kept, key=lambda axis: axis in (self.whole or ()))

    @property
    def over(self) -> list[int]:
        return [axis for axis in self.summed if self.problems[axis] > 1]

    @property
    def outside(self) -> int:
        """How many axes of the grid tell apart what is kept whole, or else what is not."""
        if self.whole is None:
            return len(self.kept) + sum(self.own)
        return sum(axis not in self.whole for axis in self.kept)

    @property
    def _tiles(self) -> tuple[int, int]:
        return self.tiling.row_tiles, self.tiling.column_tiles

    @property
    def others(self) -> int:
        """How many tiles there are to visit for each own one."""
        return math.prod(count for count, own in zip(self._tiles, self.own, strict=True) if not own)

    @property
    def visits(self) -> int:
        """How many of them there is time for; the rest are empty."""
        return self.others if self.listed is None or self.own[1] else max(1, min(self.others, self.listed))

    @cached_property
    def grid(self) -> tuple[int, ...]:
        own = [count for count, own in zip(self._tiles, self.own, strict=True) if own]
        visits = [] if all(self.own) else [self.visits]
        return (*(self.problems[a] for a in self.kept), *own, *(self.problems[a] for a in self.over), *visits)

    @property
    def semantics(self) -> tuple[pltpu.GridDimensionSemantics, ...]:
        kinds = pltpu.GridDimensionSemantics
        return (kinds.PARALLEL,) * self.outside + (kinds.ARBITRARY,) * (len(self.grid) - self.outside)

    def locate(self, ids: Ids, table: Any) -> tuple[list[Any], Any, Any, Any, Any]:
        """Problem, row tile and column tile of a step; whether it is full, and whether partial."""
        problem: list[Any] = [0] * len(self.problems)
        own = ids[len(self.kept) :][: sum(self.own)]
        places = [*ids[: len(self.kept)], *ids[len(self.kept) + len(own) :]]
        for axis, index in zip([*self.kept, *self.over], places, strict=False):
            problem[axis] = index
        visit = 0 if all(self.own) else ids[-1]
        if table is None:
            row, column = own if all(self.own) else (own[0], visit) if self.own[0] else (visit, own[0])
            return problem, row, column, True, False
        counts = [count for count, mine in zip(self._tiles, self.own, strict=True) if mine]
        start = place_in_table(self.table or (), problem, counts, own)
        if all(self.own):
            return problem, *own, table[start] == 0, table[start] == 1
        start = start * (self.others + 2)
        full, live = table[start], table[start + 1]
        other = table[start + 2 + jnp.maximum(jnp.minimum(visit, live - 1), 0)]
        row, column = (own[0], other) if self.own[0] else (other, own[0])
        return problem, row, column, visit < full, (visit >= full) & (visit < live)

    def ids(self) -> list[Any]:
        """In the kernel: the step."""
        return [pl.program_id(axis) for axis in range(len(self.grid))]

    def ends(self, ids: Ids, whole: bool = False) -> tuple[Any, Any]:
        """In the kernel: whether the step is the first of its results (or those kept whole), and whether the last."""
        first = last = True
        for axis in range(self.outside if whole else len(self.kept) + sum(self.own), len(self.grid)):
            first, last = first & (ids[axis] == 0), last & (ids[axis] == self.grid[axis] - 1)
        return first, last

    def spec(self, layout: Layout) -> pl.BlockSpec:
        def index(*arguments: Any) -> tuple[Any, ...]:
            ids, tables = arguments[: len(self.grid)], arguments[len(self.grid) :]
            problem, row, column, _, _ = self.locate(ids, tables[0] if tables else None)
            return layout.place(problem, row, column)

        return pl.BlockSpec(layout.block(), index)

    def result(self, layout: Layout) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """What the kernel makes of that layout, and the block of each step."""
        return jax.ShapeDtypeStruct(layout.memory_shape, layout.memory_dtype), self.spec(layout)


@dataclass(frozen=True)
class Inputs:
    """Operands of a kernel and behind them the leaves of its mask, and what a step makes of them.

    A block table is not among them: it says where to go.
    """

    operands: tuple[Layout, ...]
    leaves: tuple[Layout, ...]
    structure: Any
    tiling: Tiling
    table: BlockTable | None

    @staticmethod
    def of(
        operands: Sequence[Any],
        mask: Mask | None,
        tiling: Tiling,
        varies: Sequence[tuple[bool, bool]] = (),
    ) -> "Inputs":
        """Of arrays or their shapes; how the first operands vary can be said."""
        table, rest = split_table(mask)
        leaves, structure = jax.tree.flatten(rest)
        arrays = (*operands, *leaves)
        shapes = [*(shape_in_tiles(array, table, tiling) for array in operands), *(tuple(a.shape) for a in leaves)]
        layouts = [Layout(s, a.dtype, tiling, v) for s, a, v in zip_longest(shapes, arrays, varies)]
        return Inputs(tuple(layouts[: len(operands)]), tuple(layouts[len(operands) :]), structure, tiling, table)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        return (*self.operands, *self.leaves)

    @property
    def partial(self) -> bool:
        """Whether there may be partial tiles: a block table alone leaves none."""
        tiling = self.tiling
        even = tiling.rows % tiling.tile_rows == 0 and tiling.columns % tiling.tile_columns == 0
        return not even or self.structure != jax.tree.structure(None)

    @property
    def turned(self) -> list[int]:
        """Which of them have numbers for rows alone, along lanes in memory."""
        return [n for n, each in enumerate(self.layouts) if each.along == (True, False) and not each.features]

    @property
    def scratch(self) -> list[Any]:
        """Where those are kept along sublanes, the same in all lanes."""
        dtypes = [self.layouts[number].memory_dtype for number in self.turned]
        return [pltpu.VMEM((self.tiling.tile_rows, LANES), dtype) for dtype in dtypes]

    def turn(self, refs: Sequence[Any], scratch: Sequence[Any], new: Any) -> list[Any]:
        """In the kernel: turn them when the row tile is new; returns the references to read from."""

        @pl.when(new)
        def _() -> None:
            for number, column in zip(self.turned, scratch, strict=True):
                line = refs[number][...]
                column[...] = jnp.broadcast_to(line, (LANES, line.shape[1])).T[: column.shape[0]]

        kept = dict(zip(self.turned, scratch, strict=True))
        return [kept.get(number, ref) for number, ref in enumerate(refs)]

    def pairs(self, refs: Sequence[Any], row: Any, column: Any, part: Part, masked: bool) -> Pairs:
        """In the kernel: the pairs of some rows and columns of a tile."""
        shape = part[0].size, part[1].size
        first_row = row * self.tiling.tile_rows + part[0].start
        first_column = column * self.tiling.tile_columns + part[1].start
        rows = first_row + lax.broadcasted_iota(jnp.int32, (shape[0], 1), 0)
        columns = first_column + lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1)
        if not masked:
            return Pairs(rows, columns, None)
        # For the mask positions are whole tiles: booleans cannot be broadcast there.
        each_row = first_row + lax.broadcasted_iota(jnp.int32, shape, 0)
        each_column = first_column + lax.broadcasted_iota(jnp.int32, shape, 1)
        allowed = None
        if self.tiling.rows % self.tiling.tile_rows:
            allowed = each_row < self.tiling.rows
        if self.tiling.columns % self.tiling.tile_columns:
            inside = each_column < self.tiling.columns
            allowed = inside if allowed is None else allowed & inside
        if self.structure != jax.tree.structure(None):
            values = []
            for layout, ref in zip(self.leaves, refs[len(self.operands) :], strict=True):
                value = layout.read(ref, part, column)
                values.append(jnp.broadcast_to(value, shape) != 0 if layout.dtype == jnp.bool_ else value)
            more = self.structure.unflatten(values).allowed(each_row, each_column)
            allowed = more if allowed is None else allowed & more
        return Pairs(rows, columns, allowed)


def unread_to_zero(values: Sequence[Array], allowed: Bool[Array, "rows columns"]) -> list[Array]:
    """As `kernels.loop.unread_to_zero`, of what the hardware can do."""
    of_rows, of_columns = (allowed.astype(jnp.float32).max(axis=axis, keepdims=True) for axis in (1, 0))

    def one(value: Array) -> Array:
        rows, columns = value.shape[0] > 1, value.shape[1] > 1
        if not (rows or columns):
            return value
        if rows and columns:
            return jnp.where(allowed, value, 0)
        if value.ndim == 2:
            return jnp.where((of_rows if rows else of_columns) > 0, value, 0)
        flat = value[:, 0] if rows else value[0]
        touched = jnp.broadcast_to(of_rows if rows else to_column(of_columns), flat.shape)
        flat = jnp.where(touched > 0, flat, 0)
        return flat[:, None] if rows else flat[None]

    return [one(value) for value in values]


def call(
    kernel: Any,
    walk: Walk,
    inputs: Inputs,
    operands: Sequence[Array],
    mask: Mask | None,
    outputs: Sequence[tuple[Any, pl.BlockSpec]],
    scratch: Sequence[Any],
    *,
    name: str,
    interpret: Any,
) -> Sequence[Array]:
    """Run `kernel(table or None, *input refs, *output refs, *scratch refs)` for operands at every step of a walk."""
    tables = [] if walk.table is None else [_table(mask, walk)]
    if not interpret:
        # The compiler would keep it in vector memory, from where a copy to scalar memory is slower than from outside.
        tables = [pltpu.with_memory_space_constraint(table, pltpu.HBM) for table in tables]
    specs = [walk.spec(layout) for layout in inputs.layouts]
    operands = [to_tiles(array, inputs.table, walk.tiling) for array in operands]
    arrays = [*operands, *jax.tree.leaves(split_table(mask)[1])]
    ready = [layout.to_memory(array) for layout, array in zip(inputs.layouts, arrays, strict=True)]
    return pl.pallas_call(
        kernel if tables else lambda *refs: kernel(None, *refs),
        out_shape=[shape for shape, _ in outputs],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=walk.grid,
            in_specs=specs,
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=walk.semantics),
        interpret=interpret,
        name=name,
    )(*tables, *ready)


def _table(mask: Mask | None, walk: Walk) -> Array:
    """The visit table; of a mask without arrays a constant, so that no program computes it."""
    if jax.tree.leaves(mask):
        return visit_table(mask, walk.tiling, walk.own)
    with jax.ensure_compile_time_eval():
        return jax.jit(lambda: visit_table(mask, walk.tiling, walk.own))()


def unsupported(inputs: Inputs, mask: Mask | None, outputs: Sequence[Layout]) -> str | None:
    """Why a kernel cannot have these inputs, that mask or those outputs; from shapes alone."""
    for layout in (*inputs.layouts, *outputs):
        if layout.unsupported:
            return layout.unsupported
    cut = cut_blocks(inputs.table, inputs.tiling)
    if cut is not None:
        return cut
    foreign = not_elementwise(split_table(mask)[1], inputs.tiling.problem_axes)
    if foreign is not None:
        return f"a mask that takes more than arithmetic on positions and its arrays: {foreign}"
    numbers = visit_table_size(mask, inputs.tiling)
    if numbers > TABLE_LIMIT:
        return f"a mask with {numbers} tiles to tell apart, more than {TABLE_LIMIT}; larger tiles make fewer"
    return None
