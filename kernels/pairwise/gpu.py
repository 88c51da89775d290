"""The sum over pairs in Pallas on Triton, for NVIDIA GPUs.

Outputs that vary along rows come from a kernel with a result for each row tile, which visits column tiles; those that
vary along columns from one with rows and columns exchanged, whose tiles of pairs lie as (columns, rows), so that
weights go from one matrix product to the next without being transposed; those that vary along both from one that
visits each tile once. Sums are kept in float32, and scaled once at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from kernels.entries import from_tiles, output_in_tiles
from kernels.gpu_blocks import Inputs, Launch, Layout, Walk, call, fit, power, touched, traced_pairs
from kernels.gpu_compact import Compact
from kernels.loop import Output, Pairs
from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import split_table
from kernels.pairwise.grouping import grouped
from kernels.pairwise.tiles import Tangent, TileFunction, Transpose
from kernels.schedule import Tiles, table_problems
from kernels.shapes import tile_features


def default_launch(operands: Sequence[Any], axes: int, own: tuple[bool, bool]) -> Launch:
    """What fits in registers and shared memory of all targets."""
    widths = [power(array.shape[-1]) for array in operands if tile_features(array.shape, axes)]
    width = max(widths, default=0)
    if _matmul_dtype(operands, axes) == jnp.float32:
        return Launch(Tiles(32, 32), 8, 2) if width <= 64 else Launch(Tiles(16, 16), 4, 2)
    if width > 128 or (width > 64 and len(widths) > 4):
        # More matrices than query, key, value and a cotangent: a second derivative.
        return Launch(Tiles(32, 32), 8, 2)
    if own == (True, False):
        return Launch(Tiles(128 if width <= 64 else 64, 64), 8, 2)
    return Launch(Tiles(32, 128), 8, 2) if width <= 64 else Launch(Tiles(32, 64), 8, 2)


def pairwise_sum(
    function: TileFunction,
    operands: Sequence[Array],
    mask: Mask | None,
    *,
    outputs: Sequence[Output],
    sizes: tuple[int, int],
    axes: int,
    tiles: Tiles | None,
    interpret: Any = False,
) -> list[Array]:
    """See `kernels.pairwise.primitive.pairwise_sum`."""
    if 0 in sizes or any(0 in output.shape for output in outputs):
        return [jnp.zeros(output.shape, output.dtype) for output in outputs]
    made: list[Any] = [None] * len(outputs)
    for launch, walk, members in _walks(operands, mask, outputs, sizes, axes, tiles):
        plan = _Plan.of(function, operands, mask, launch, walk, outputs, members)
        for number, result in zip(members, plan.run(operands, mask, interpret), strict=True):
            made[number] = from_tiles(result, outputs[number], mask, walk.tiling)
    return made


def supports(
    function: TileFunction,
    operands: Sequence[Any],
    mask: Any,
    *,
    outputs: Sequence[Output],
    sizes: tuple[int, int],
    axes: int,
    tiles: Tiles | None,
) -> str | None:
    """Why `pairwise_sum` cannot take these, or None; of arrays or their shapes."""
    tile = fit(sizes, tiles or default_launch(operands, axes, (True, False)).tiles, split_table(mask)[0], one=True)
    tiling = Tiling(*sizes, tile.rows, tile.columns, axes)
    layouts = [Layout(output.shape, output.dtype, tiling) for output in outputs]
    return Inputs.of(operands, mask, tiling).unsupported(mask, layouts)


def _walks(
    operands: Sequence[Any],
    mask: Any,
    outputs: Sequence[Output],
    sizes: tuple[int, int],
    axes: int,
    tiles: Tiles | None,
) -> list[tuple[Launch, Walk, list[int]]]:
    """A kernel for all outputs that want the same walk, and their numbers."""
    problems, groups = grouped(operands, mask, outputs, axes)
    walks = []
    for order, members in groups.items():
        launch = default_launch(operands, axes, order.own)
        tile = fit(sizes, tiles or launch.tiles, split_table(mask)[0], one=True)
        tiling = Tiling(*sizes, tile.rows, tile.columns, axes)
        walks.append((launch, Walk(problems, order.summed, order.own, tiling, table_problems(mask, tiling)), members))
    return walks


@dataclass(frozen=True, eq=False)
class _Plan:
    """One kernel: what it reads and makes, and what it does in a tile."""

    launch: Launch
    walk: Walk
    inputs: Inputs
    results: tuple[Layout, ...]
    full: Compact
    partial: Compact
    """The tile function for full tiles, and for partial ones."""

    @staticmethod
    def of(
        function: TileFunction,
        operands: Sequence[Any],
        mask: Mask | None,
        launch: Launch,
        walk: Walk,
        outputs: Sequence[Output],
        members: Sequence[int],
    ) -> "_Plan":
        tiling, dtype = walk.tiling, _matmul_dtype(operands, walk.tiling.problem_axes)
        inputs = Inputs.of(operands, mask, tiling)
        padded = _padded(function)

        def compact(masked: bool) -> Compact:
            def traced(rows: Any, columns: Any, *values: Any) -> Sequence[Any]:
                values, allowed = (values[:-1], values[-1]) if masked else (values, None)
                return padded(Pairs(rows, columns, allowed), *values)

            rows, columns = traced_pairs(tiling)
            positions = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, 1), (1, columns))]
            pairs = [jax.ShapeDtypeStruct((rows, columns), jnp.bool_)] if masked else []
            return Compact.of(
                traced,
                [*positions, *(layout.traced for layout in inputs.operands), *pairs],
                (tiling.tile_rows, tiling.tile_columns),
                flipped=walk.own == (False, True),
                dtype=dtype,
                wanted=[number in members for number in range(len(outputs))],
            )

        full = compact(False)
        # What is rounded to 16 bits wherever it is used is read in 16 bits.
        narrowed = tuple(
            replace(layout, dtype=dtype) if only and layout.features else layout
            for layout, only in zip(inputs.operands, full.only_in_products[2:], strict=True)
        )
        made = [output_in_tiles(outputs[number], walk.problems, tiling) for number in members]
        results = tuple(Layout(output.shape, output.dtype, tiling) for output in made)
        return _Plan(launch, walk, replace(inputs, operands=narrowed), results, full, compact(True))

    @property
    def flipped(self) -> bool:
        return self.full.flipped

    def run(self, operands: Sequence[Array], mask: Mask | None, interpret: Any) -> list[Array]:
        """The results."""
        ready = [array.astype(layout.dtype) for array, layout in zip(operands, self.inputs.operands, strict=True)]
        made = call(
            self._kernel,
            self.walk,
            self.inputs,
            ready,
            mask,
            [(jax.ShapeDtypeStruct(out.memory_shape, out.dtype), out.spec) for out in map(self._parts, self.results)],
            launch=self.launch,
            name=f"pairwise_sum_{'rows' * self.walk.own[0]}{'columns' * self.walk.own[1]}",
            interpret=interpret,
        )
        return [
            (result if any(layout.along) or layout.of_entries else result.sum(axis=-1 - len(layout.features)))
            .reshape(layout.shape)
            .astype(layout.dtype)
            for layout, result in zip(self.results, made, strict=True)
        ]

    def _parts(self, layout: Layout) -> Layout:
        """As the kernel makes it: what varies along neither rows nor columns comes in a part for each row tile."""
        if any(layout.along) or layout.of_entries:
            return layout
        axes, tiling = layout.axes, layout.tiling
        shape = (*layout.shape[:axes], tiling.row_tiles, 1, *layout.features)
        return Layout(shape, jnp.float32, replace(tiling, rows=tiling.row_tiles, tile_rows=1), (True, False))

    def _kernel(self, table: Any, *refs: Any) -> None:
        """One program."""
        inputs, count = self.inputs, len(self.inputs.operands)
        read, made = refs[: len(inputs.layouts)], refs[len(inputs.layouts) :]
        operands = list(zip(inputs.operands, read[:count], strict=True))
        program = self.walk.program()
        problem, own_row, own_column = program
        visited = [not own for own in self.walk.own]
        allowed_in = inputs.allowed(self.flipped)

        def allowed_at(problem: Any, row: Any, column: Any) -> Any:
            leaves = zip(inputs.leaves, read[count:], strict=True)
            return allowed_in(row, column, [self._read(leaf, ref, problem, row, column) for leaf, ref in leaves])

        def add(problem: list[Any]) -> Any:
            # What does not vary along the visited tiles is read once.
            once = [
                self._read(layout, ref, problem, own_row, own_column)
                if not (layout.of_entries or any(a and v for a, v in zip(layout.along, visited, strict=True)))
                else None
                for layout, ref in operands
            ]

            def visit(masked: bool, row: Any, column: Any, sums: list[Array]) -> list[Array]:
                allowed: Any = allowed_at(problem, row, column) if masked else None
                values = [
                    self._read(layout, ref, problem, row, column, not masked, allowed)
                    if kept is None
                    else self._clean(kept, layout, allowed)
                    for (layout, ref), kept in zip(operands, once, strict=True)
                ]
                positions = self._positions(row, column)
                results = self.partial(*positions, *values, allowed) if masked else self.full(*positions, *values)
                added = []
                for layout, ref, result, factor in zip(self.results, made, results, self.full.factors, strict=True):
                    if layout.of_entries:
                        # A tile is visited once.
                        layout.write(ref, _times(result, factor), problem, row, column)
                    else:
                        added.append(result)
                return [total + result for total, result in zip(sums, added, strict=True)]

            return visit

        def look(problem: list[Any]) -> Any:
            def visit(masked: bool, row: Any, column: Any, seen: Array) -> Array:
                if not masked:
                    return jnp.ones_like(seen)
                return jnp.maximum(seen, self._touched(allowed_at(problem, row, column)))

            return visit

        in_sums = [each for each in zip(self.results, made, self.full.factors, strict=True) if not each[0].of_entries]
        sums = [jnp.zeros(self._sum_shape(layout), jnp.float32) for layout, _, _ in in_sums]
        sums = self.walk.run(table, program, sums, add)
        seen = None
        if table is not None and any(self._along):
            # In a loop of its own, as the other has no registers to spare.
            seen = self.walk.run(table, program, jnp.zeros(self._seen_shape, jnp.int32), look)
        for (layout, ref, factor), total in zip(in_sums, sums, strict=True):
            total = _times(total, factor)
            if seen is not None and any(layout.along):
                # What reads nothing has no sum, be it NaN itself.
                total = jnp.where(seen[:, None] > 0 if layout.features else seen > 0, total, 0)
            total = total if any(layout.along) else total.reshape(1, *total.shape)
            self._parts(layout).write(ref, total, problem, own_row, own_column)

    @property
    def _seen_shape(self) -> tuple[int, ...]:
        tile = (self.walk.tiling.tile_rows, self.walk.tiling.tile_columns)
        return tuple(size for size, along in zip(tile, self._along, strict=True) if along)

    @property
    def _along(self) -> tuple[bool, bool]:
        """Along what all results vary."""
        rows, columns = zip(*(layout.along for layout in self.results), strict=True)
        return all(rows), all(columns)

    def _positions(self, row: Any, column: Any) -> tuple[Array, Array]:
        def line(index: Any, size: int) -> Array:
            return index * size + lax.iota(jnp.int32, size) if size > 1 else jnp.int32(index)

        return line(row, self.walk.tiling.tile_rows), line(column, self.walk.tiling.tile_columns)

    def _read(
        self, layout: Layout, ref: Any, problem: Any, row: Any, column: Any, whole: bool = False, allowed: Any = None
    ) -> Array:
        """A tile; of a partial tile without what no allowed pair touches: 0 · NaN would be NaN."""
        if all(layout.along):
            value = layout.read(ref, problem, row, column, whole)
            return self._clean(value.T if self.flipped else value, layout, allowed)
        only = None if allowed is None else self._summed(layout, allowed)
        return layout.read(ref, problem, row, column, whole, only)

    def _clean(self, value: Array, layout: Layout, allowed: Any) -> Array:
        """The same of a tile that is there."""
        if allowed is None:
            return value
        here = allowed if all(layout.along) else self._summed(layout, allowed)
        if here is None:
            return value
        return jnp.where(here[:, None] if layout.features else here, value, 0)

    def _summed(self, layout: Layout, allowed: Bool[Array, "..."]) -> Bool[Array, " n"] | None:
        """Which rows (columns) some allowed pair touches, if what varies along them is summed over them."""
        rows, columns = (along and not kept for along, kept in zip(layout.along, self._along, strict=True))
        return touched(allowed, 1 if rows != self.flipped else 0) if rows or columns else None

    def _touched(self, allowed: Bool[Array, "..."]) -> Array:
        """Which rows, columns or pairs, whichever the results vary along, some allowed pair touches."""
        rows, columns = self._along
        if rows and columns:
            return allowed.astype(jnp.int32)
        return touched(allowed, 1 if rows != self.flipped else 0).astype(jnp.int32) if rows or columns else jnp.int32(1)

    def _sum_shape(self, layout: Layout) -> tuple[int, ...]:
        shape = layout.tile_shape
        return shape[::-1] if self.flipped and all(layout.along) else shape


def _times(value: Array, factor: float) -> Array:
    return value if factor == 1 else value * factor


def _padded(function: TileFunction) -> TileFunction:
    """The tile function of features padded with zeros, as matrix products want them."""
    match function:
        case Tangent():
            return replace(function, function=_padded(function.function))
        case Transpose():
            linear = (
                None if s is None else replace(s, features=tuple(map(power, s.features))) for s in function.linear
            )
            return replace(function, function=_padded(function.function), linear=tuple(linear))
        case _:
            return function


def _matmul_dtype(operands: Sequence[Any], axes: int) -> Any:
    """The narrowest dtype of a matrix among the operands; float32 if none is of 16 bits."""
    kinds = [jnp.dtype(array.dtype) for array in operands if tile_features(array.shape, axes)]
    return min(kinds, key=lambda kind: kind.itemsize, default=jnp.dtype(jnp.float32))
