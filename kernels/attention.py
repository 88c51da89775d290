"""Softmax attention: the public function, its arguments checked, and the way to an implementation."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels.dense import reference
from kernels.dense.derivatives import flash_attention
from kernels.implementation import check_name
from kernels.masks.algebra import Mask
from kernels.masks.arrays import Dense
from kernels.pairwise.tiles import Scores
from kernels.problem import Problem
from kernels.schedule import Tiles
from kernels.shapes import Grid, accumulator, attention_grid
from kernels.statistics import reference as reference_statistics
from kernels.statistics import tiled
from kernels.statistics.requests import NAMES, Request, Statistics


def attention(
    query: Float[Array, "*batch query_length heads width"],
    key: Float[Array, "*batch key_length kv_heads width"],
    value: Float[Array, "*batch key_length kv_heads value_width"],
    *,
    mask: Mask | Array | np.ndarray | None = None,
    bias: Array | np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Array | np.ndarray | None = None,
    statistics: Sequence[Request] = (),
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> Any:
    """softmax(scores) value, head by head (Vaswani et al. 2017, equation 1), in the layout of `jax.nn`'s.

    scores = softcap(scale · query keyᵀ) + bias where the mask allows, and -inf elsewhere. Query head h reads key head
    h // (heads / kv_heads). Memory is linear in length, and so it is in derivatives: reverse and forward mode, in
    any order and combination, with respect to query, key, value, bias and sink, of the output and of every
    statistic. Scores and sums are float32 or wider whatever the inputs' dtype; the output has the query's dtype. A
    row that may read nothing gives 0, log-sum-exp -inf and gradient 0. What no query may read (padding, say) is never
    seen, be it NaN.

    Args:
      mask: who may read whom (`kernels.masks`), or a boolean array that broadcasts to
        (*batch, heads, query_length, key_length). None: everyone everything.
      bias: added to the scores; broadcasts as a mask's array does. Its gradient is summed as it is made.
      scale: factor on query keyᵀ, width ** -0.5 by default.
      softcap: scores become softcap · tanh(scores / softcap), before the bias.
      sink: a logit for each head, broadcasting to (*batch, heads), that takes weight and gives no value.
      statistics: what to tell about the weights, by name or request, each at most once (`kernels.statistics.requests`).
      implementation: "reference" (quadratic, written to be read), "xla" (tiled, any platform), "gpu", "tpu", or None
        for that of the platform that a program is lowered for; see `explain`.
      tiles: rows and columns of scores computed at once; None: by the device's table, else by rule.

    Returns:
      The output (*batch, query_length, heads, value_width), or with statistics (output, Statistics).

    Raises:
      ValueError, TypeError: arguments that do not fit, named.
    """
    problem, sink = prepare(query, key, value, mask, bias, scale, softcap, sink, implementation, tiles)
    output, found = attend(problem, sink, _checked(statistics))
    return (problem.grid.outputs(output), found) if statistics else problem.grid.outputs(output)


def prepare(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask | Array | np.ndarray | None,
    bias: Array | np.ndarray | None,
    scale: float | None,
    softcap: float | None,
    sink: Array | np.ndarray | None,
    implementation: str | None,
    tiles: Tiles | None,
) -> tuple[Problem, Float[Array, "#flat #kv_heads #groups 1 1"] | None]:
    """The arguments of `attention`, checked and brought on the grid: the problem, and the sink."""
    grid = attention_grid(query, key, value)
    check_name(implementation)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be above 0; got {softcap}")
    who = mask if mask is None or isinstance(mask, Mask) else Dense(mask)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if not isinstance(factor, (int, float)):
        raise TypeError(f"scale must be a Python number (multiply the query by a traced one); got {type(scale)}")
    if bias is not None:
        bias = jnp.asarray(bias)
        if not jnp.issubdtype(bias.dtype, jnp.floating):
            raise TypeError(f"bias must be floating point; got {bias.dtype}")
        bias = grid.scores("bias", bias)
    problem = Problem(
        grid.queries(query),
        grid.keys(key),
        grid.keys(value),
        bias,
        None if who is None else who.on(grid),
        grid,
        Scores(float(factor), softcap, bias is not None),
        tiles,
        implementation,
    )
    return problem, _sink_on(grid, sink)


def attend(
    problem: Problem, sink: Float[Array, "#flat #kv_heads #groups 1 1"] | None, requests: Sequence[Request]
) -> tuple[Float[Array, "flat kv_heads groups rows 1 value_width"], Statistics]:
    """Attention on the grid: the kernel, then the sink, then the statistics."""
    precision = accumulator(problem.query.dtype)
    quadratic = problem.implementation == "reference"
    extra = {} if quadratic else tiled.extra_values(problem, requests)
    value = jnp.concatenate([problem.value, *extra.values()], axis=-1) if extra else problem.value
    whole = replace(problem, value=value)
    output, lse = reference.attention(whole) if quadratic else flash_attention(whole)
    total = jnp.where(lse == -jnp.inf, 0, jnp.ones_like(lse))
    if sink is not None:
        # The keys' share of the weight; a row that reads no key leaves all of it to the sink.
        reading = lse > -jnp.inf
        total = jnp.where(reading, jax.nn.sigmoid(jnp.where(reading, lse, 0) - sink.astype(precision)), 0)
        lse = jnp.logaddexp(lse, sink.astype(precision))
        output = (output * total[..., None]).astype(output.dtype)
    ends = list(itertools.accumulate(array.shape[-1] for array in (problem.value, *extra.values())))
    output, *sums = jnp.split(output, ends[:-1], axis=-1)
    if quadratic:
        return output, reference_statistics.statistics(problem, lse, tuple(requests))
    return output, tiled.statistics(problem, lse, total, requests, dict(zip(extra, sums, strict=True)))


def _sink_on(grid: Grid, sink: Array | np.ndarray | None) -> Float[Array, "#flat #kv_heads #groups 1 1"] | None:
    if sink is None:
        return None
    sink = jnp.asarray(sink)
    if not jnp.issubdtype(sink.dtype, jnp.floating):
        raise TypeError(f"sink must be floating point; got {sink.dtype}")
    if sink.ndim == 0 or sink.ndim > len(grid.batch) + 1:
        raise ValueError(f"sink must broadcast to (*batch, heads) = {grid.scores_shape[:-2]}; got {sink.shape}")
    return grid.scores("sink[..., None, None]", sink[..., None, None])


def _checked(statistics: Sequence[Request]) -> tuple[Request, ...]:
    kinds = [request if isinstance(request, str) else type(request) for request in statistics]
    for request, kind in zip(statistics, kinds, strict=True):
        if isinstance(request, str) and request not in NAMES:
            raise ValueError(f"statistics must be among {', '.join(NAMES)} or requests; got {request!r}")
        if kinds.count(kind) > 1:
            raise ValueError(f"statistics must ask for each kind once; got {request} twice")
    return tuple(statistics)
