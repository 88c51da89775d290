"""The sum over pairs in Pallas for TPUs.

Outputs that vary along rows come from a kernel with a result for each row tile, which visits column tiles; those that
vary along columns from one with rows and columns exchanged; those that vary along both from one that visits each
tile once. Problem axes that an output is summed over are visited with the tiles. Sums are kept in float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from kernels.loop import Output
from kernels.masks.algebra import Mask, Tiling
from kernels.pairwise.precision import in_dtype
from kernels.pairwise.tiles import TileFunction
from kernels.schedule import Tiles, table_problems
from kernels.tpu_blocks import Inputs, Layout, Part, Walk, call, fit, to_line, unread_to_zero, unsupported

BLOCK = 256
Key = tuple[tuple[bool, bool], tuple[int, ...]]


def default_tiles(operands: Sequence[Any], axes: int) -> Tiles:
    """What fits in the 16 MiB of vector memory that a kernel has by default."""
    return Tiles(512, 512)


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
    for walk, members in _walks(operands, mask, outputs, _tiling(operands, sizes, axes, tiles)):
        results = _kernel(function, operands, mask, walk, outputs, members, interpret)
        for number, result in zip(members, results, strict=True):
            made[number] = result
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
    tiling = _tiling(operands, sizes, axes, tiles)
    layouts = [Layout(o.shape, o.dtype, axes, Tiles(tiling.tile_rows, tiling.tile_columns)) for o in outputs]
    return unsupported(Inputs.of(operands, mask, tiling), mask, layouts)


def _tiling(operands: Sequence[Any], sizes: tuple[int, int], axes: int, tiles: Tiles | None) -> Tiling:
    tile = fit(sizes, tiles or default_tiles(operands, axes))
    return Tiling(*sizes, tile.rows, tile.columns, axes)


def _walks(
    operands: Sequence[Any], mask: Any, outputs: Sequence[Output], tiling: Tiling
) -> list[tuple[Walk, list[int]]]:
    """A kernel for all outputs that want the same walk, and their numbers."""
    axes, leaves = tiling.problem_axes, jax.tree.leaves(mask)
    problems = jnp.broadcast_shapes(*(array.shape[:axes] for array in (*operands, *leaves, *outputs)))
    groups: dict[Key, list[int]] = {}
    for number, output in enumerate(outputs):
        groups.setdefault(_key(output, problems, axes), []).append(number)
    table = table_problems(mask, tiling)
    return [(Walk(problems, summed, own, tiling, table), members) for (own, summed), members in groups.items()]


def _key(output: Output, problems: tuple[int, ...], axes: int) -> Key:
    """For which tiles an output has results of its own (rows if for none), and the problem axes it is summed over."""
    rows, columns = output.shape[axes] > 1, output.shape[axes + 1] > 1
    summed = tuple(axis for axis, size in enumerate(problems) if size > 1 and output.shape[axis] == 1)
    return (rows or not columns, columns), summed


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
    layouts = [Layout(outputs[number].shape, outputs[number].dtype, axes, tile) for number in members]
    parts = _parts(walk.own, tile)

    def kernel(table: Any, *refs: Any) -> None:
        read = refs[: len(inputs.layouts)]
        result_refs, sum_refs = refs[len(read) : -len(members)], refs[-len(members) :]
        ids = walk.ids()
        _, row, column, full, partial = walk.locate(ids, table)
        first, last = walk.ends(ids)

        @pl.when(first)
        def _() -> None:
            for ref in sum_refs:
                ref[...] = jnp.zeros(ref.shape, jnp.float32)

        def step(masked: bool) -> None:
            for part in parts:
                pairs = inputs.pairs(read, row, column, part, masked)
                values = [layout.read(ref, part) for layout, ref in zip(inputs.operands, read, strict=False)]
                if pairs.allowed is not None:
                    values = [unread_to_zero(value, pairs.allowed) for value in values]
                results = [result for result in evaluate(pairs, *values) if result is not None]
                for layout, result, ref in zip(layouts, results, sum_refs, strict=True):
                    if pairs.allowed is not None:
                        result = unread_to_zero(result, pairs.allowed)
                    place = part if all(layout.along) else ...
                    ref[place] += _flat(layout, result)

        if table is None:
            step(False)
        else:
            pl.when(full)(lambda: step(False))
            pl.when(partial)(lambda: step(True))

        @pl.when(last)
        def _() -> None:
            for layout, result, ref in zip(layouts, result_refs, sum_refs, strict=True):
                line = layout.along == (True, False) and not layout.features
                result[...] = (to_line(ref[...]) if line else ref[...]).astype(result.dtype)

    made = call(
        kernel,
        walk,
        inputs,
        [*operands, *jax.tree.leaves(mask)],
        mask,
        [_result(layout, walk) for layout in layouts],
        [pltpu.VMEM(_sum_shape(layout), jnp.float32) for layout in layouts],
        name=f"pairwise_sum_{'rows' * walk.own[0]}{'columns' * walk.own[1]}",
        interpret=interpret,
    )
    return [_collect(layout, result) for layout, result in zip(layouts, made, strict=True)]


def _parts(own: tuple[bool, bool], tile: Tiles) -> list[Part]:
    """The blocks of a tile that are computed at once; along what is summed over, so that one overlaps the next."""

    def cut(size: int, here: bool) -> list[Any]:
        size_of_part = BLOCK if here and size % BLOCK == 0 else size
        return [pl.ds(start, size_of_part) for start in range(0, size, size_of_part)]

    row_parts, column_parts = cut(tile.rows, not own[0]), cut(tile.columns, not own[1])
    return [(rows, columns) for rows in row_parts for columns in column_parts]


def _flat(layout: Layout, result: Array) -> Array:
    """A result without the axis of rows or columns that it does not vary along, where it has features."""
    if not layout.features:
        return result
    return result[:, 0] if layout.along[0] or not layout.along[1] else result[0]


def _sum_shape(layout: Layout) -> tuple[int, ...]:
    rows = layout.tile.rows if layout.along[0] else 1
    columns = layout.tile.columns if layout.along[1] else 1
    return (rows * columns, *layout.features) if layout.features else (rows, columns)


def _result(layout: Layout, walk: Walk) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
    """Shape in memory, and blocks; what varies along neither rows nor columns comes in a part for each row tile."""
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
    return result.sum(axis=layout.axes).reshape(layout.shape).astype(layout.dtype)


def _matmul_dtype(operands: Sequence[Any], axes: int) -> Any:
    """bfloat16 if a matrix among the operands is."""
    narrow = any(array.dtype == jnp.bfloat16 and array.ndim > axes + 2 for array in operands)
    return jnp.bfloat16 if narrow else jnp.float32
