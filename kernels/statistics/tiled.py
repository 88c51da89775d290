"""Statistics tile by tile: what is linear in the weights rides on the values, the rest takes one more pass.

The pass adds up everything that is asked over the same pairs at once, so weights are computed once for all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.loop import Output
from kernels.masks.algebra import Mask
from kernels.masks.positions import Window
from kernels.pairwise.primitive import pairwise_sum
from kernels.problem import Problem
from kernels.statistics import sums
from kernels.statistics.requests import (
    ColumnSums,
    Functional,
    Mass,
    Request,
    RowSums,
    Statistics,
    TopKeys,
    WindowedDistance,
)
from kernels.statistics.top import top_keys, weights_of


def extra_values(problem: Problem, requests: Sequence[Request]) -> dict[str, Float[Array, "#flat kv_heads 1 1 keys n"]]:
    """Value columns by which the forward pass yields a statistic, if its products are float32 or wider.

    In 16 bits a position would be rounded, so there they are summed by a pass of their own.
    """
    grid, dtype = problem.grid, problem.value.dtype
    columns = {}
    for request in requests if dtype.itemsize > 2 else ():
        match request:
            case "expected_position" | "position_variance":
                positions = jnp.arange(grid.columns, dtype=dtype)[:, None]
                shape = (*problem.value.shape[:-1], 1)
                columns["expected_position"] = jnp.broadcast_to(positions, shape)
            case Functional() | Mass():
                columns[request.name] = grid.keys(request.on(grid).astype(dtype))
    return columns


@dataclass(frozen=True)
class _Wanted:
    """A sum over the pairs of the mask and `within`; its shape on the grid; operands of its own."""

    sum_of: sums.Sum
    shape: tuple[int, ...]
    extra: tuple[Array, ...] = ()
    within: Mask | None = None


def statistics(
    problem: Problem,
    lse: Float[Array, "flat kv_heads groups rows 1"],
    total: Float[Array, "flat kv_heads groups rows 1"],
    requests: Sequence[Request],
    known: dict[str, Float[Array, "flat kv_heads groups rows 1 n"]],
) -> Statistics:
    """See `kernels.statistics.requests`.

    Args:
      lse: that of keys and sink.
      total: the sum of a row's weights; 1 without a sink, 0 where nothing is read.
      known: what `extra_values` have yielded.
    """
    grid = problem.grid
    by_row, by_column = (*grid.problems, grid.rows, 1), (*grid.problems, 1, grid.columns)
    divisor = jnp.where(lse == -jnp.inf, jnp.inf, lse)
    found = {name: array[..., 0] if name == "expected_position" else array for name, array in known.items()}
    named = {request for request in requests if isinstance(request, str)}
    if named & {"expected_position", "position_variance"} and "expected_position" not in found:
        found |= _sum_up({"expected_position": _Wanted(sums.Position(), by_row)}, problem, divisor)
    wanted: dict[str, _Wanted] = {}
    for request in requests:
        match request:
            case "lse":
                found["lse"] = lse
            case "entropy":
                wanted["entropy"] = _Wanted(sums.Entropy(), by_row)
            case "position_variance":
                wanted["position_variance"] = _Wanted(sums.SquaredDeviation(), by_row, (found["expected_position"],))
            case "maximum":
                best = top_keys(problem, 1)
                found["maximum"], found["argmax"] = weights_of(problem, divisor, best)[..., 0], best[..., 0]
            case TopKeys():
                best = top_keys(problem, request.count)
                found["top_keys"], found["top_weights"] = best, weights_of(problem, divisor, best)
            case Functional() | Mass() if request.name not in found:
                values = grid.keys(request.on(grid).astype(divisor.dtype))
                wanted[request.name] = _Wanted(sums.OfValues(), (*by_row, values.shape[-1]), (values,))
            case ColumnSums():
                rows = request.weights(grid).astype(divisor.dtype)
                wanted["column_sums"] = _Wanted(sums.OverRows(), by_column, (rows,), request.within)
            case RowSums():
                wanted["row_sums"] = _Wanted(sums.OverColumns(), by_row, (), request.within)
            case WindowedDistance():
                # Σ w min(d, W) = W Σ w - Σ w max(W - d, 0), and the second sum needs only the pairs within W.
                offset, window = request.offset(grid), request.window
                near = Window(window, window, offset)
                wanted["windowed_distance"] = _Wanted(sums.Nearness(window, offset), by_row, (), near)
    found |= _sum_up(wanted, problem, divisor)
    for request in requests:
        if isinstance(request, WindowedDistance):
            found["windowed_distance"] = request.window * total - found["windowed_distance"]
    if "expected_position" not in named:
        found.pop("expected_position", None)
    return Statistics(**{name: _to_caller(name, array, problem) for name, array in found.items()})


def _sum_up(wanted: dict[str, _Wanted], problem: Problem, divisor: Array) -> dict[str, Array]:
    """One pass for all sums over the same pairs."""
    everywhere = [name for name, one in wanted.items() if one.within is None]
    passes = [everywhere] if everywhere else []
    passes += [[name] for name, one in wanted.items() if one.within is not None]
    found = {}
    for names in passes:
        mask, within = problem.mask, wanted[names[0]].within
        if within is not None:
            mask = within.on(problem.grid) if mask is None else mask & within.on(problem.grid)
        extras = [wanted[name].extra for name in names]
        function = sums.Sums(problem.scores, tuple(wanted[name].sum_of for name in names), tuple(map(len, extras)))
        results = pairwise_sum(
            function,
            [problem.query, problem.key, divisor, *problem.biases, *(array for own in extras for array in own)],
            mask,
            [Output(wanted[name].shape, divisor.dtype) for name in names],
            sizes=problem.grid.sizes,
            tiles=problem.tiles,
            implementation=problem.implementation,
        )
        found |= dict(zip(names, results, strict=True))
    return found


def _to_caller(name: str, array: Array, problem: Problem) -> Array:
    grid = problem.grid
    if name in ("functional", "mass"):
        return grid.outputs(array)
    if name in ("top_keys", "top_weights"):
        return array.reshape(*grid.batch, grid.kv_heads * grid.groups, grid.rows, array.shape[-1])
    if name == "column_sums":
        return array.reshape(*grid.batch, grid.kv_heads * grid.groups, grid.columns)
    return grid.rows_of_heads(array)
