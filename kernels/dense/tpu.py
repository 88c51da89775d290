"""Flash attention in Pallas for TPUs.

A tile of scores is taken in chunks of rows, and a chunk in parts of columns. While the weights of one chunk are made
and summed, the scores of the next are, so that matrix unit and vector unit both have work. Scores are in units of
log 2. The highest score and the sum of weights of a row are kept along lanes, the sum in 128 parts until the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.masks.algebra import Mask, Tiling
from kernels.masks.block_table import split_table
from kernels.pairwise.tiles import Scores
from kernels.schedule import Tiles, most_listed, table_problems
from kernels.tpu_blocks import Inputs, Walk, call, unsupported
from kernels.tpu_layout import LANES, Layout, fit, to_column, to_line

LOWEST = -1e38
_VARIES = ((True, False), (False, True), (False, True))
"""Query, key and value, along rows and columns: also where there is only one."""
PART = 512
CHUNK = 256


def default_tiles(operands: Sequence[Any], mask: Any) -> Tiles:
    """What fits in the 16 MiB of vector memory that a kernel has by default; wide where all tiles are full."""
    query, _, value, *bias = operands
    if max(query.shape[-1], value.shape[-1]) > 128:
        return Tiles(512, 512)
    wide = mask is None and not bias and jnp.dtype(query.dtype).itemsize == 2
    return Tiles(512, 2048 if wide else 1024)


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
        _Kernel.of(plan, scores, table, refs).run()

    made = call(
        kernel,
        plan.walk,
        plan.inputs,
        operands,
        mask,
        [plan.walk.result(plan.output), plan.walk.result(plan.lse)],
        plan.scratch,
        name="flash_attention",
        interpret=interpret,
    )
    return [plan.output.from_memory(made[0]), plan.lse.from_memory(made[1])]


def supports(
    *operands: Any, mask: Any, scores: Scores, sizes: tuple[int, int], axes: int, tiles: Tiles | None
) -> str | None:
    """Why `attention` cannot take these, or None; of arrays or their shapes."""
    plan = _Plan.of(operands, mask, sizes, axes, tiles)
    return unsupported(plan.inputs, mask, [plan.output, plan.lse])


@dataclass(frozen=True)
class _Plan:
    """How one call is cut, from shapes alone."""

    inputs: Inputs
    walk: Walk
    output: Layout
    lse: Layout

    @staticmethod
    def of(operands: Sequence[Any], mask: Any, sizes: tuple[int, int], axes: int, tiles: Tiles | None) -> "_Plan":
        query, _, value = operands[:3]
        problems = np.broadcast_shapes(*(array.shape[:axes] for array in (*operands, *jax.tree.leaves(mask))))
        table = split_table(mask)[0]
        tile = fit(sizes, tiles or default_tiles(operands, mask), table)
        tiling = Tiling(*sizes, tile.rows, tile.columns, axes)
        return _Plan(
            Inputs.of(operands, mask, tiling, _VARIES),
            Walk(problems, (), (True, False), tiling, table_problems(mask, tiling), listed=most_listed(table, tiling)),
            Layout((*problems, sizes[0], 1, value.shape[-1]), query.dtype, tiling, _VARIES[0]),
            Layout((*problems, sizes[0], 1), jnp.float32, tiling, _VARIES[0]),
        )

    @property
    def tile(self) -> Tiles:
        return self.output.tile

    @property
    def chunk(self) -> int:
        """How many rows of scores are held at once."""
        return CHUNK if self.tile.rows % CHUNK == 0 else self.tile.rows

    @cached_property
    def parts(self) -> list[Any]:
        size = PART if self.tile.columns % PART == 0 else self.tile.columns
        return [pl.ds(start, size) for start in range(0, self.tile.columns, size)]

    @property
    def once(self) -> bool:
        """Whether every row tile has a single column tile, and a full one."""
        return self.walk.table is None and self.walk.others == 1

    @property
    def scratch(self) -> list[Any]:
        """Highest scores, sums of weights and of weighted values; then what is held of one chunk, and of the other."""
        statistics = (self.tile.rows, LANES)
        held = [(self.chunk, self.tile.columns), (self.chunk, LANES), (1, self.tile.columns)]
        shapes = [statistics, statistics, (self.tile.rows, self.output.features[0]), *held, *held]
        return [*(pltpu.VMEM(shape, jnp.float32) for shape in shapes), *self.inputs.scratch]


@dataclass(frozen=True)
class _Held:
    """References to the scores of a chunk, to the highest of each row, and to which columns some row may read."""

    scores: Any
    peak: Any
    touched: Any


@dataclass(frozen=True)
class _Kernel:
    """One step of the grid: a row tile meets a column tile."""

    plan: _Plan
    scores: Scores
    table: Any
    reads: Sequence[Any]
    output: Any
    lse: Any
    high: Any
    total: Any
    summed: Any
    held: tuple[_Held, _Held]

    @staticmethod
    def of(plan: _Plan, scores: Scores, table: Any, refs: Sequence[Any]) -> "_Kernel":
        count = len(plan.inputs.layouts)
        output, lse, high, total, summed, *others = refs[count:]
        held, turned = (_Held(*others[:3]), _Held(*others[3:6])), others[6:]
        reads = plan.inputs.turn(refs[:count], turned, plan.walk.ids()[-1] == 0)
        return _Kernel(plan, scores, table, reads, output, lse, high, total, summed, held)

    def run(self) -> None:
        ids = self.plan.walk.ids()
        row, column, full, some = self.plan.walk.locate(ids, self.table)[1:]
        first, last = self.plan.walk.ends(ids)
        if self.plan.once:
            return self.tile(row, column, False)

        @pl.when(first)
        def _() -> None:
            self.high[...] = jnp.full(self.high.shape, LOWEST, jnp.float32)
            self.total[...] = jnp.zeros(self.total.shape, jnp.float32)
            self.summed[...] = jnp.zeros(self.summed.shape, jnp.float32)

        if self.table is None:
            self.tile(row, column, False)
        else:
            pl.when(full)(lambda: self.tile(row, column, False))
            if self.plan.inputs.partial:
                pl.when(some)(lambda: self.tile(row, column, True))

        @pl.when(last)
        def _() -> None:
            for number in range(self.plan.tile.rows // self.plan.chunk):
                rows = self.rows_of(number)
                self.finish(rows, self.high[rows, :], self.total[rows, :], self.summed[rows, :])

    def rows_of(self, number: Any) -> Any:
        start = number * self.plan.chunk
        return pl.ds(start if isinstance(number, int) else pl.multiple_of(start, self.plan.chunk), self.plan.chunk)

    def tile(self, row: Any, column: Any, masked: bool) -> None:
        """All chunks: the weights of one beside the scores of the next."""
        count = self.plan.tile.rows // self.plan.chunk

        def both(now: Any, then: Any, parity: int) -> None:
            state = None if now is None else self.open(now, self.held[1 - parity])
            peak: Any = None
            for part in self.plan.parts:
                if then is not None:
                    peak = self.score(row, column, then, part, peak, self.held[parity], masked)
                if state is not None:
                    state = self.weigh(part, state, self.held[1 - parity], masked)
            if then is not None:
                self.held[parity].peak[...] = jnp.broadcast_to(peak.max(axis=1, keepdims=True), peak.shape)
            if state is not None:
                self.close(now, state)

        def two(number: Any, more: bool = True) -> None:
            both(2 * number, 2 * number + 1, 1)
            both(2 * number + 1, 2 * number + 2 if more else None, 0)

        both(None, 0, 0)
        if count > 2:
            lax.fori_loop(0, (count - 1) // 2, lambda number, _: two(number), None)
        if count % 2:
            both(count - 1, None, 1)
        else:
            two(count // 2 - 1, False)

    def score(
        self, row: Any, column: Any, number: Any, part: Any, peak: Any, held: _Held, masked: bool
    ) -> Float[Array, "rows 128"]:
        """The scores of a part of a chunk, kept; returns the highest so far."""
        rows, inputs = self.rows_of(number), self.plan.inputs
        query, key, _, *bias = self.reads[: len(inputs.operands)]
        raw = _matmul(query[rows, :], key[part, :], 1)
        made = _in_log2(self.scores, raw, [inputs.operands[3].read(ref, (rows, part), column) for ref in bias])
        if masked:
            allowed = inputs.pairs(self.reads, row, column, (rows, part), True).allowed
            assert allowed is not None
            made = jnp.where(allowed, made, -jnp.inf)
            held.touched[:, part] = allowed.astype(jnp.float32).max(axis=0, keepdims=True)
        held.scores[:, part] = made
        return _fold(made, jnp.maximum, peak)

    def open(self, number: Any, held: _Held) -> tuple[Array, Array, Array]:
        """Highest scores of a chunk, and the sums so far at their scale."""
        rows, high = self.rows_of(number), held.peak[...]
        if self.plan.once:
            return high, jnp.zeros_like(high), jnp.zeros((high.shape[0], self.summed.shape[1]), jnp.float32)
        before = self.high[rows, :]
        high = jnp.maximum(before, high)
        shrink = jnp.exp2(before - high)
        return high, self.total[rows, :] * shrink, self.summed[rows, :] * _lanes(shrink, self.summed.shape[1])

    def weigh(
        self, part: Any, state: tuple[Array, Array, Array], held: _Held, masked: bool
    ) -> tuple[Array, Array, Array]:
        """The sums with the weights of one more part."""
        high, total, summed = state
        weights = jnp.exp2(held.scores[:, part] - _lanes(high, part.size))
        values = self.reads[2][part, :]
        if masked:
            # What no row of the chunk reads may be NaN.
            touched = jnp.broadcast_to(to_column(held.touched[:, part]), values.shape)
            values = jnp.where(touched > 0, values.astype(jnp.float32), 0).astype(values.dtype)
        return high, _fold(weights, jnp.add, total), summed + _matmul(weights.astype(values.dtype), values, 0)

    def close(self, number: Any, state: tuple[Array, Array, Array]) -> None:
        rows = self.rows_of(number)
        if self.plan.once:
            self.finish(rows, *state)
        else:
            self.high[rows, :], self.total[rows, :], self.summed[rows, :] = state

    def finish(self, rows: Any, high: Array, total: Array, summed: Array) -> None:
        """What a row tile leaves behind: rows that read nothing give 0, and -inf."""
        whole = total.sum(axis=1, keepdims=True)
        self.output[rows, :] = jnp.where(whole == 0, 0, summed * (1 / whole)).astype(self.output.dtype)
        lse = to_line(high[:, :1] * math.log(2) + jnp.log(whole))
        self.lse[:, pl.ds(rows.start, lse.shape[1])] = lse


def _lanes(values: Float[Array, "rows 128"], width: int) -> Float[Array, "rows width"]:
    """What is the same in all lanes, for that many of them."""
    if width <= LANES:
        return values[:, :width]
    return jnp.concatenate([values] * -(-width // LANES), axis=1)[:, :width]


def _fold(values: Float[Array, "rows columns"], combine: Any, start: Any = None) -> Float[Array, "rows 128"]:
    """Columns combined into 128."""
    for first in range(0, values.shape[1], LANES):
        part = values[:, first : first + LANES]
        start = part if start is None else combine(start, part)
    return start


def _matmul(a: Array, b: Array, contract: int) -> Array:
    precision = None if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a, b, (((1,), (contract,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _in_log2(scores: Scores, raw: Float[Array, "rows columns"], bias: list[Array]) -> Float[Array, "rows columns"]:
    """Scores divided by log 2, from queries times keys."""
    if scores.softcap is None and not bias:
        return raw * (scores.scale / math.log(2))
    made = raw * scores.scale
    if scores.softcap is not None:
        made = scores.softcap * jnp.tanh(made / scores.softcap)
    return (made + bias[0] if bias else made) / math.log(2)
