"""Statistics by their definitions, from the weights themselves: quadratic, and the oracle of the tiled ones."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.dense.reference import masked_scores
from kernels.masks.algebra import dense
from kernels.problem import Problem
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
from kernels.statistics.top import NONE


def statistics(
    problem: Problem, lse: Float[Array, "flat kv_heads groups rows 1"], requests: tuple[Request, ...]
) -> Statistics:
    """See `kernels.statistics.requests`; lse is that of keys and sink."""
    grid = problem.grid
    scores, _ = masked_scores(problem)
    scores = scores.reshape(*grid.problems, *grid.sizes)
    divisor = jnp.where(lse == -jnp.inf, jnp.inf, lse)
    weights = jnp.exp(scores - divisor)
    keys = jnp.arange(grid.columns)
    position = (weights * keys).sum(-1)
    found = {}
    for request in requests:
        match request:
            case "lse":
                found["lse"] = grid.rows_of_heads(lse)
            case "entropy":
                terms = jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1)), 0)
                found["entropy"] = grid.rows_of_heads(-terms.sum(-1))
            case "expected_position":
                found["expected_position"] = grid.rows_of_heads(position)
            case "position_variance":
                deviation = keys - position[..., None]
                found["position_variance"] = grid.rows_of_heads((weights * deviation**2).sum(-1))
            case "maximum":
                if grid.columns == 0:
                    best, where = jnp.zeros(position.shape, lse.dtype), jnp.full(position.shape, NONE)
                else:
                    best, where = weights.max(-1), jnp.where(weights.any(-1), scores.argmax(-1), NONE)
                found |= {"maximum": grid.rows_of_heads(best), "argmax": grid.rows_of_heads(where)}
            case Functional() | Mass():
                values = grid.keys(request.on(grid).astype(weights.dtype))
                sums = jnp.einsum("bkgrs,bksv->bkgrv", weights, values[:, :, 0, 0])
                found[request.name] = grid.outputs(sums[:, :, :, :, None])
            case ColumnSums():
                counted = weights * request.weights(grid).astype(weights.dtype)
                if request.within is not None:
                    counted = jnp.where(dense(request.within.on(grid), *grid.sizes), counted, 0)
                sums = counted.sum(-2)
                found["column_sums"] = sums.reshape(*grid.batch, grid.kv_heads * grid.groups, grid.columns)
            case RowSums():
                counted = jnp.where(dense(request.within.on(grid), *grid.sizes), weights, 0)
                found["row_sums"] = grid.rows_of_heads(counted.sum(-1))
            case WindowedDistance():
                distance = jnp.abs(jnp.arange(grid.rows)[:, None] + request.offset(grid) - keys)
                near = jnp.minimum(distance, request.window)
                found["windowed_distance"] = grid.rows_of_heads((weights * near).sum(-1))
            case TopKeys():
                order = jnp.argsort(-scores, axis=-1, stable=True)[..., : request.count]
                best = jnp.take_along_axis(weights, order, axis=-1)
                order = jnp.where(jnp.take_along_axis(scores, order, axis=-1) > -jnp.inf, order, NONE)
                behind = [(0, 0)] * 4 + [(0, request.count - order.shape[-1])]
                shape = (*grid.batch, grid.kv_heads * grid.groups, grid.rows, request.count)
                found["top_weights"] = jnp.pad(best, behind).reshape(shape)
                found["top_keys"] = jnp.pad(order, behind, constant_values=NONE).reshape(shape)
    return Statistics(**found)
