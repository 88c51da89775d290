"""The sum over pairs in Pallas for TPUs.

Outputs that vary along rows come from a kernel with a result for each row tile, which visits column tiles; those that
vary along columns from one with rows and columns exchanged; those that vary along both from one that visits each
tile once. Problem axes that an output is summed over are visited with the tiles. Sums are kept in float32.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from kernels.entries import from_tiles, output_in_tiles
from kernels.loop import Output
from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import split_table
from kernels.pairwise.grouping import grouped, order_of
from kernels.pairwise.precision import Value, in_dtype
from kernels.pairwise.tiles import TileFunction
from kernels.schedule import Tiles, most_listed, table_problems
from kernels.shapes import tile_features
from kernels.tpu_blocks import Inputs, Walk, call, unread_to_zero, unsupported
from kernels.tpu_layout import LANES, Layout, Part, fit, round_up, to_line

BLOCK = 1024
"""How much of a tile is computed at once along what is summed over."""
WHOLE = 8 << 20
"""Bytes of vector memory for results that are kept whole."""


def default_tiles(operands: Sequence[Any], axes: int) -> Tiles:
    """What fits in the 16 MiB of vector memory that a kernel has by default: fewer rows for many operands."""
    features = [tile_features(array.shape, axes) for array in operands]
    along = [array.shape[axes : axes + 2] for array in operands]
    width = sum(some[0] if some else 512 * (min(sizes) > 1) for some, sizes in zip(features, along, strict=True))
    return Tiles(512 if width <= 1536 else 256, 512)


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
    tiling = _tiling(operands, mask, sizes, axes, tiles)
    for walk, members in _walks(operands, mask, outputs, tiling):
        results = _kernel(function, operands, mask, walk, outputs, members, interpret)
        for number, result in zip(members, results, strict=True):
            made[number] = from_tiles(result, outputs[number], mask, tiling)
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
    tiling = _tiling(operands, mask, sizes, axes, tiles)
    return unsupported(Inputs.of(operands, mask, tiling), mask, [_layout(output, tiling) for output in outputs])


def _tiling(operands: Sequence[Any], mask: Any, sizes: tuple[int, int], axes: int, tiles: Tiles | None) -> Tiling:
    tile = fit(sizes, tiles or default_tiles(operands, axes), split_table(mask)[0])
    # A single row or column stays one: tile functions cannot tell whether what has one of them varies along them.
    rows, columns = (1 if size == 1 else part for size, part in zip(sizes, (tile.rows, tile.columns), strict=True))
    return Tiling(*sizes, rows, columns, axes)


def _walks(
    operands: Sequence[Any], mask: Any, outputs: Sequence[Output], tiling: Tiling
) -> list[tuple[Walk, list[int]]]:
    """A kernel for all outputs that want the same walk, and their numbers."""
    problems, groups = grouped(operands, mask, outputs, tiling.problem_axes)
    table, listed = table_problems(mask, tiling), most_listed(split_table(mask)[0], tiling)
    walks = [
        (Walk(problems, order.summed, order.own, tiling, table, listed=listed), members)
        for order, members in groups.items()
    ]
    return _joined(walks, outputs)


def _joined(walks: list[tuple[Walk, list[int]]], outputs: Sequence[Output]) -> list[tuple[Walk, list[int]]]:
    """One kernel for results by rows and results by columns, if those by columns can be kept whole."""
    by_rows = [pair for pair in walks if pair[0].own == (True, False)]
    by_columns = [pair for pair in walks if pair[0].own == (False, True)]
    for rows in by_rows:
        for columns in by_columns:
            layouts = [_layout(outputs[number], columns[0].tiling, whole=True) for number in columns[1]]
            if set(rows[0].summed) <= set(columns[0].summed) and sum(map(_whole_bytes, layouts)) <= WHOLE:
                both = replace(rows[0], whole=columns[0].summed), [*rows[1], *columns[1]]
                return [both, *(pair for pair in walks if pair is not rows and pair is not columns)]
    return walks


def _layout(output: Output, tiling: Tiling, whole: bool = False) -> Layout:
    return Layout(output.shape, output.dtype, tiling, whole=whole)


def _whole_bytes(layout: Layout) -> int:
    """Vector memory of a result that is kept whole: the sum, and two blocks on their way out."""
    *_, lines, lanes = layout.memory_shape
    tiles = layout.memory_shape[layout.axes] if len(layout.memory_shape) > layout.axes + 2 else 1
    size = tiles * round_up(lines, 8) * round_up(lanes, LANES)
    return size * (4 + 2 * jnp.dtype(layout.memory_dtype).itemsize)


def _kernel(
    function: TileFunction,
    operands: Sequence[Array],
    mask: Mask | None,
    walk: Walk,
    outputs: Sequence[Output],
    members: Sequence[int],
    interpret: Any,
) -> list[Array]:
    """Those outputs, of one kernel."""
    tiling, axes = walk.tiling, walk.tiling.problem_axes
    tile = Tiles(tiling.tile_rows, tiling.tile_columns)
    inputs = Inputs.of(operands, mask, tiling)
    wanted = [number in members for number in range(len(outputs))]
    evaluate = in_dtype(function, _matmul_dtype(operands, axes), wanted)
    whole = [walk.whole is not None and order_of(outputs[n], walk.problems).own == (False, True) for n in members]
    made_here = [output_in_tiles(outputs[number], walk.problems, tiling) for number in members]
    layouts = [_layout(output, tiling, kept) for output, kept in zip(made_here, whole, strict=True)]
    parts = _parts(walk.own, tile)
    stays = walk.own == (True, False)

    def kernel(table: Any, *refs: Any) -> None:
        ids = walk.ids()
        read, result_refs, sum_refs, turned = _split(refs, len(inputs.layouts), len(members), len(members))
        if stays:
            read = inputs.turn(read, turned, ids[-1] == 0)
        _, row, column, full, some = walk.locate(ids, table)

        def clear(kept: bool) -> None:
            for layout, ref in zip(layouts, sum_refs, strict=True):
                if layout.whole == kept:
                    ref[...] = jnp.zeros(ref.shape, jnp.float32)

        for kept in sorted(set(whole)):
            pl.when(walk.ends(ids, kept)[0])(partial(clear, kept))

        def step(masked: bool) -> None:
            for part in parts:
                pairs = inputs.pairs(read, row, column, part, masked)
                values = [_value(layout, ref, part, column) for layout, ref in zip(inputs.operands, read, strict=False)]
                if pairs.allowed is not None:
                    values = unread_to_zero([value.array for value in values], pairs.allowed)
                made = evaluate(pairs, *values)
                results = [made[number] for number in members]
                if pairs.allowed is not None:
                    results = unread_to_zero(results, pairs.allowed)
                for layout, result, ref in zip(layouts, results, sum_refs, strict=True):
                    ref[_place(layout, column, part)] += _flat(layout, result, column)

        if table is None:
            step(False)
        else:
            pl.when(full)(lambda: step(False))
            if inputs.partial:
                pl.when(some)(lambda: step(True))

        def finish(kept: bool) -> None:
            for layout, result, ref in zip(layouts, result_refs, sum_refs, strict=True):
                line = layout.along == (True, False) and not layout.features
                if layout.whole == kept:
                    result[...] = (to_line(ref[...]) if line else ref[...]).astype(result.dtype)

        for kept in sorted(set(whole)):
            pl.when(walk.ends(ids, kept)[1])(partial(finish, kept))

    ways = ["rows"] * walk.own[0] + ["columns"] * (walk.own[1] or any(whole))
    made = call(
        kernel,
        walk,
        inputs,
        operands,
        mask,
        [_result(layout, walk) for layout in layouts],
        [*(pltpu.VMEM(_sum_shape(layout), jnp.float32) for layout in layouts), *(inputs.scratch if stays else ())],
        name=f"pairwise_sum_{'_'.join(ways)}",
        interpret=interpret,
    )
    return [_collect(layout, result) for layout, result in zip(layouts, made, strict=True)]


def _split(refs: Sequence[Any], *counts: int) -> list[Sequence[Any]]:
    """So many, then so many, and the rest."""
    ends = [0, *itertools.accumulate(counts), len(refs)]
    return [refs[start:end] for start, end in itertools.pairwise(ends)]


def _value(layout: Layout, ref: Any, part: Part, column: Any) -> Value:
    """An operand in the kernel, with what saves work: 16 bits as they are, numbers for rows in all lanes."""
    rows, columns = layout.along
    if layout.features and ref.dtype == jnp.bfloat16 and rows != columns:
        narrow = ref[part[0] if rows else part[1], :]
        return Value(layout.read(ref, part, column), narrow[:, None] if rows else narrow[None])
    turned = rows and not columns and not layout.features and ref.shape[0] > 1
    return Value(layout.read(ref, part, column), lanes=ref[part[0], :] if turned else None)


def _parts(own: tuple[bool, bool], tile: Tiles) -> list[Part]:
    """The blocks of a tile that are computed at once; along what is summed over, so that one overlaps the next."""

    def cut(size: int, here: bool) -> list[Any]:
        size_of_part = BLOCK if here and size % BLOCK == 0 else size
        return [pl.ds(start, size_of_part) for start in range(0, size, size_of_part)]

    row_parts, column_parts = cut(tile.rows, not own[0]), cut(tile.columns, not own[1])
    return [(rows, columns) for rows in row_parts for columns in column_parts]


def _flat(layout: Layout, result: Array, column: Any) -> Array:
    """A result without the axis of rows or columns that it does not vary along, where it has features.

    That of a tile comes in the place of the tile.
    """
    if layout.of_entries:
        return jnp.where(lax.broadcasted_iota(jnp.int32, _sum_shape(layout), 1) == column, result, 0)
    if not layout.features:
        return result
    return result[:, 0] if layout.along[0] or not layout.along[1] else result[0]


def _place(layout: Layout, column: Any, part: Part) -> Any:
    """Where a part of a tile belongs in the sums."""
    if all(layout.along):
        return part
    if not layout.whole:
        return ...
    if not layout.features:
        return column, slice(None), part[1]
    start = pl.multiple_of(column * layout.tile.columns, LANES) + part[1].start
    return pl.ds(start, part[1].size), slice(None)


def _sum_shape(layout: Layout) -> tuple[int, ...]:
    if layout.whole:
        return layout.memory_shape[layout.axes :]
    if layout.of_entries:
        return (1, layout.tiling.column_tiles)
    rows = layout.tile.rows if layout.along[0] else 1
    columns = layout.tile.columns if layout.along[1] else 1
    return (rows * columns, *layout.features) if layout.features else (rows, columns)


def _result(layout: Layout, walk: Walk) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
    """Shape in memory, and blocks; what varies along neither rows nor columns comes in a part for each row tile.

    Numbers for tiles come in a line for each row tile.
    """
    if any(layout.along):
        return walk.result(layout)
    shape, lead = _sum_shape(layout), layout.shape[: layout.axes]

    def index(*arguments: Any) -> tuple[Any, ...]:
        ids, tables = arguments[: len(walk.grid)], arguments[len(walk.grid) :]
        problem, row, *_ = walk.locate(ids, tables[0] if tables else None)
        return (*(0 if size == 1 else place for size, place in zip(lead, problem, strict=True)), row, 0, 0)

    spec = pl.BlockSpec((*(None for _ in lead), None, *shape), index)
    return jax.ShapeDtypeStruct((*lead, walk.tiling.row_tiles, *shape), jnp.float32), spec


def _collect(layout: Layout, result: Array) -> Array:
    if any(layout.along):
        return layout.from_memory(result)
    if layout.of_entries:
        return result.reshape(layout.shape)
    return result.sum(axis=layout.axes).reshape(layout.shape).astype(layout.dtype)


def _matmul_dtype(operands: Sequence[Any], axes: int) -> Any:
    """bfloat16 if a matrix among the operands is."""
    narrow = any(array.dtype == jnp.bfloat16 and tile_features(array.shape, axes) for array in operands)
    return jnp.bfloat16 if narrow else jnp.float32
