"""Flash attention in Pallas on Triton, for NVIDIA GPUs.

One program has a row tile; it goes over the column tiles that its mask leaves, first the full ones, then the partial
ones, and carries the highest score of each row, its sum of weights and of weighted values. Scores are in units of
log 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kernels.gpu_blocks import Inputs, Launch, Layout, Walk, call, fit, power, touched
from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import split_table
from kernels.pairwise.tiles import Scores
from kernels.schedule import Tiles, table_problems

LOWEST = -1e38
_VARIES = ((True, False), (False, True), (False, True))
"""Query, key and value, along rows and columns: also where there is only one."""


def default_launch(dtype: Any, width: int) -> Launch:
    """What fits in registers and shared memory of all targets."""
    if jnp.dtype(dtype).itemsize == 4:
        return Launch(Tiles(64, 32), 8, 2) if width <= 64 else Launch(Tiles(32 if width <= 128 else 16, 16), 4, 2)
    return Launch(Tiles(128, 64), 8, 3) if width <= 128 else Launch(Tiles(64, 32), 8, 2)


def attention(
    query: Float[Array, "... rows 1 width"],
    key: Float[Array, "... 1 columns width"],
    value: Float[Array, "... 1 columns value_width"],
    *bias: Float[Array, "..."],
    mask: Mask | None,
    scores: Scores,
    sizes: tuple[int, int],
    axes: int,
    tiles: Tiles | None,
    interpret: Any = False,
) -> list[Array]:
    """Output and log-sum-exp; see `kernels.dense.xla.attention`."""
    operands = [query, key, value, *bias]
    plan = _Plan.of(operands, mask, sizes, axes, tiles)
    if 0 in (*sizes, *plan.output.shape):
        return [jnp.zeros(plan.output.shape, query.dtype), jnp.full(plan.lse.shape, -jnp.inf, jnp.float32)]

    def kernel(table: Any, *refs: Any) -> None:
        _run(plan, scores, table, refs)

    made = call(
        kernel,
        plan.walk,
        plan.inputs,
        operands,
        mask,
        [(jax.ShapeDtypeStruct(out.memory_shape, out.dtype), out.spec) for out in (plan.output, plan.lse)],
        launch=plan.launch,
        name="flash_attention",
        interpret=interpret,
    )
    return [made[0].reshape(plan.output.shape), made[1].reshape(plan.lse.shape)]


def supports(
    *operands: Any, mask: Any, scores: Scores, sizes: tuple[int, int], axes: int, tiles: Tiles | None
) -> str | None:
    """Why `attention` cannot take these, or None; of arrays or their shapes."""
    plan = _Plan.of(operands, mask, sizes, axes, tiles)
    return plan.inputs.unsupported(mask, [plan.output, plan.lse])


@dataclass(frozen=True)
class _Plan:
    """How one call is cut, from shapes alone."""

    launch: Launch
    inputs: Inputs
    walk: Walk
    output: Layout
    lse: Layout

    @staticmethod
    def of(operands: Sequence[Any], mask: Any, sizes: tuple[int, int], axes: int, tiles: Tiles | None) -> "_Plan":
        query, _, value = operands[:3]
        problems: tuple[Any, ...] = jnp.broadcast_shapes(
            *(array.shape[:axes] for array in (*operands, *jax.tree.leaves(mask)))
        )
        width = max(power(query.shape[-1]), power(value.shape[-1]))
        launch = default_launch(query.dtype, width)
        tile = fit(sizes, tiles or launch.tiles, split_table(mask)[0])
        tiling = Tiling(*sizes, tile.rows, tile.columns, axes)
        return _Plan(
            launch,
            Inputs.of(operands, mask, tiling, _VARIES),
            Walk(problems, (), (True, False), tiling, table_problems(mask, tiling)),
            Layout((*problems, sizes[0], 1, value.shape[-1]), query.dtype, tiling, _VARIES[0]),
            Layout((*problems, sizes[0], 1), jnp.float32, tiling, _VARIES[0]),
        )


def _run(plan: _Plan, scores: Scores, table: Any, refs: Sequence[Any]) -> None:
    """One program: all visits of a row tile."""
    inputs, tiling = plan.inputs, plan.inputs.tiling
    count = len(inputs.operands)
    query_ref, key_ref, value_ref, *bias_refs = refs[:count]
    leaf_refs, (output_ref, lse_ref) = refs[count:-2], refs[-2:]
    allowed_in = inputs.allowed(False)
    program = plan.walk.program()
    _, own, _ = program

    def open_problem(problem: list[Any]) -> Any:
        query_at, key_at, value_at, *bias_at = inputs.operands
        query = query_at.read(query_ref, problem, own, 0)

        def visit(masked: bool, row: Any, column: Any, state: tuple[Array, Array, Array]) -> tuple[Array, ...]:
            high, total, summed = state
            place, whole = (problem, row, column), not masked
            allowed = only = None
            if masked:
                leaves = zip(inputs.leaves, leaf_refs, strict=True)
                allowed = allowed_in(row, column, [leaf.read(ref, *place) for leaf, ref in leaves])
                only = touched(allowed, 0)
            bias = [layout.read(ref, *place, whole) for layout, ref in zip(bias_at, bias_refs, strict=True)]
            made = _in_log2(scores, _matmul(query, key_at.read(key_ref, *place, whole), 1), bias, bias_at)
            if allowed is not None:
                made = jnp.where(allowed, made, -jnp.inf)
            higher = jnp.maximum(high, made.max(axis=1))
            weights = jnp.exp2(made - higher[:, None])
            shrink = jnp.exp2(high - higher)
            # What no row of the tile reads may be NaN.
            value = value_at.read(value_ref, *place, whole, only)
            total = total * shrink + weights.sum(axis=1)
            return higher, total, summed * shrink[:, None] + _matmul(weights.astype(value.dtype), value, 0)

        return visit

    rows, width = tiling.tile_rows, plan.output.tile_shape[-1]
    start = (
        # Finite, so that exp2(-inf - high) = 0 in rows that have read nothing yet.
        jnp.full((rows,), LOWEST, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, width), jnp.float32),
    )
    high, total, summed = plan.walk.run(table, program, start, open_problem)
    problem = program[0]
    # Rows that read nothing give 0, and -inf.
    share = jnp.where(total == 0, 0, 1 / total)
    plan.output.write(output_ref, summed * share[:, None], problem, own, 0)
    plan.lse.write(lse_ref, high * math.log(2) + jnp.log(total), problem, own, 0)


def _matmul(a: Float[Array, "m k"], b: Float[Array, "..."], contract: int) -> Float[Array, "m n"]:
    """In IEEE float32, not in TF32, if the operands are float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (((1,), (contract,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _in_log2(
    scores: Scores, raw: Float[Array, "rows columns"], bias: list[Array], layouts: Sequence[Layout]
) -> Float[Array, "rows columns"]:
    """Scores divided by log 2, from queries times keys."""
    if scores.softcap is None and not bias:
        return raw * (scores.scale / math.log(2))
    made = raw * scores.scale
    if scores.softcap is not None:
        made = scores.softcap * jnp.tanh(made / scores.softcap)
    for added, layout in zip(bias, layouts, strict=True):
        added = added.astype(jnp.float32)
        made = made + (added[:, None] if layout.along == (True, False) else added)
    return made / math.log(2)
