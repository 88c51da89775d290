"""Softmax attention written to be read: quadratic in length, and the oracle every faster kernel must match."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kernels.masks.algebra import dense
from kernels.problem import Problem
from kernels.shapes import Grid, accumulator


def attention(
    problem: Problem,
) -> tuple[Float[Array, "flat kv_heads groups rows 1 value_width"], Float[Array, "flat kv_heads groups rows 1"]]:
    """softmax(scores) value, and the log-sum-exp of each row of scores (Vaswani et al. 2017, equation 1).

    Scores and weights are float32 or wider whatever the inputs' dtype; the output has the query's dtype, the
    log-sum-exp is float32 or wider. A row that may read nothing gives 0 and -inf, and gradient 0. What no row may
    read (padding, say) is never seen, be it NaN; a NaN that one row reads may spoil the rows beside it.
    """
    query, value, grid = problem.query, problem.value, problem.grid
    precision = accumulator(query.dtype)
    values = value.reshape(grid.problems[0] * grid.kv_heads, grid.columns, value.shape[-1])
    scores, allowed = masked_scores(problem)
    if problem.mask is not None:
        # Weights are 0 where nothing is read, but 0 · NaN is NaN: keys that no row reads are zeroed.
        values = jnp.where(jnp.moveaxis(allowed.any(axis=1, keepdims=True), 1, 2), values, 0)
    # The shift is finite even where a row has nothing to read, so that exp(-inf - shift) = 0.
    lowest = jnp.finfo(precision).min
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=2, keepdims=True, initial=lowest))
    exponentials = jnp.exp(scores - highest)
    total = exponentials.sum(axis=2, keepdims=True)
    summed = jnp.einsum("prs,psv->prv", exponentials, values.astype(precision), preferred_element_type=precision)
    # Without a mask or a bias every row reads something, if there are keys.
    reading = jnp.bool_(grid.columns > 0) if problem.mask is None and problem.bias is None else total > 0
    output = jnp.where(reading, summed / jnp.where(reading, total, 1), 0)
    lse = jnp.where(reading, highest + jnp.log(jnp.where(reading, total, 1)), -jnp.inf)
    return output.reshape(*query.shape[:-1], values.shape[-1]).astype(query.dtype), lse.reshape(query.shape[:-1])


def masked_scores(
    problem: Problem,
) -> tuple[Float[Array, "problems queries columns"], Bool[Array, "..."]]:
    """Scores, -inf where a query may not read a key, and where it may.

    A problem is a batch entry and a key head: the rows of all query heads that read it against its keys.
    """
    grid, rule = problem.grid, problem.scores
    (flat, kv_heads, groups), (rows, columns) = grid.problems, grid.sizes
    precision = accumulator(problem.query.dtype)
    queries = problem.query.reshape(flat * kv_heads, groups * rows, problem.query.shape[-1])
    keys = problem.key.reshape(flat * kv_heads, columns, problem.key.shape[-1])
    allowed = jnp.bool_(columns > 0)
    if problem.mask is not None:
        allowed = fold(dense(problem.mask, rows, columns), grid)
        # Gradients are 0 where nothing is read, but 0 · NaN is NaN: rows that read nothing and keys that no row
        # reads are zeroed before they are multiplied.
        queries = jnp.where(allowed.any(axis=2, keepdims=True), queries, 0)
        keys = jnp.where(jnp.moveaxis(allowed.any(axis=1, keepdims=True), 1, 2), keys, 0)
    scores = jnp.einsum("prw,psw->prs", queries, keys, preferred_element_type=precision) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    if problem.bias is not None:
        # A bias may be anything, not-a-number too, where nothing is read.
        scores = scores + jnp.where(allowed, fold(problem.bias, grid).astype(precision), 0)
    return jnp.where(allowed, scores, -jnp.inf), allowed


def fold(scores: Array, grid: Grid) -> Array:
    """Scores of the grid with (batch, kv_heads) one axis and (groups, rows) another."""
    (flat, kv_heads, groups), (rows, columns) = grid.problems, grid.sizes
    full = jnp.broadcast_to(scores, (flat, kv_heads, groups, rows, columns))
    return full.reshape(flat * kv_heads, groups * rows, columns)
