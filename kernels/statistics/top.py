"""The keys of largest score in each row, by a tiled loop that keeps the best so far."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from kernels.loop import Output, Pairs, tiled_loop
from kernels.problem import Problem
from kernels.shapes import accumulator

NONE = -1
"""The index where a row reads fewer keys than are asked for."""


def top_keys(problem: Problem, count: int) -> Int[Array, "flat kv_heads groups rows 1 count"]:
    """Indices of the `count` keys of largest score, largest first, NONE behind the last; of equals the first.

    Indices have no derivative; `weights_of` gives the weights at them, which have.
    """
    precision = accumulator(problem.query.dtype)
    output = Output((*problem.query.shape[:-1], count), jnp.int32)
    past = jnp.iinfo(jnp.int32).max

    def initial(rows: int) -> tuple[Array, Array]:
        return jnp.full((rows, count), -jnp.inf, precision), jnp.full((rows, count), past)

    def step(pairs: Pairs, state: tuple[Array, Array], *operands: Array) -> tuple[tuple[Array, Array], list[Array]]:
        scores = problem.scores(pairs, *(operand.astype(precision) for operand in operands))
        columns = jnp.where(scores > -jnp.inf, pairs.columns, past)
        best, where = lax.top_k(scores, min(count, scores.shape[1]))
        where = jnp.take_along_axis(columns, where, axis=1)
        best, where = jnp.concatenate([state[0], best], axis=1), jnp.concatenate([state[1], where], axis=1)
        # Tiles are not visited in order of their keys: of equals the smaller index, whichever came first.
        order = jnp.lexsort((where, -best), axis=1)[:, :count]
        return (jnp.take_along_axis(best, order, axis=1), jnp.take_along_axis(where, order, axis=1)), []

    def finish(state: tuple[Array, Array]) -> list[Array]:
        return [jnp.where(state[0] > -jnp.inf, state[1], NONE)[:, None]]

    arrays = [lax.stop_gradient(array) for array in (problem.query, problem.key, *problem.biases)]
    grid = problem.grid
    if 0 in (*grid.sizes, count):
        return jnp.full(output.shape, NONE)
    return tiled_loop(step, initial, finish, arrays, problem.mask, grid.sizes, [output], axes=3, tiles=problem.tiles)[0]


def weights_of(
    problem: Problem,
    lse: Float[Array, "flat kv_heads groups rows 1"],
    keys: Int[Array, "flat kv_heads groups rows 1 n"],
) -> Float[Array, "flat kv_heads groups rows 1 n"]:
    """The weights of the keys of those indices, 0 where there is none."""
    precision = accumulator(problem.query.dtype)
    columns, present = jnp.maximum(keys[..., 0, :], 0), keys[..., 0, :] != NONE
    flat, kv_heads, groups, rows, count = columns.shape
    spread = columns.reshape(flat, kv_heads, groups * rows * count, 1)
    read = jnp.take_along_axis(problem.key[:, :, 0, 0], spread, axis=2).reshape(*columns.shape, problem.key.shape[-1])
    query = problem.query[..., 0, :]
    scores = jnp.einsum("bkgrw,bkgrnw->bkgrn", query, read, preferred_element_type=precision) * problem.scores.scale
    if problem.scores.softcap is not None:
        scores = problem.scores.softcap * jnp.tanh(scores / problem.scores.softcap)
    if problem.bias is not None:
        bias = problem.bias.astype(precision)
        scores = scores + (bias if bias.shape[4] == 1 else jnp.take_along_axis(bias, columns, axis=4))
    scores = jnp.where(present, scores - jnp.where(present, lse, 0), -jnp.inf)
    return jnp.exp(scores)[..., None, :]
