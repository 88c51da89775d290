"""Linear attention: the public functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels.implementation import check_name
from kernels.linear import derivatives, reference
from kernels.schedule import Tiles
from kernels.shapes import Grid, accumulator, attention_grid


def linear_attention(
    query: Float[Array, "batch query_length heads width"],
    key: Float[Array, "batch key_length kv_heads width"],
    value: Float[Array, "batch key_length kv_heads value_width"],
    *,
    scale: float | None = None,
) -> Float[Array, "batch query_length heads value_width"]:
    """scale · query (keyᵀ value), head by head: every query reads every key; attention whose weights are its scores.

    The sum over keys is not divided by their number, so the output grows with key_length. Grouped queries,
    dtypes and errors as in `kernels.attention`; scale is width ** -0.5 by default.
    """
    attention_grid(query, key, value)
    batch, query_length, heads, width = query.shape
    kv_heads = key.shape[2]
    precision = jnp.promote_types(query.dtype, jnp.float32)
    factor = width**-0.5 if scale is None else scale
    state = jnp.einsum("bskw,bskv->bkwv", key, value, preferred_element_type=precision)
    grouped = query.reshape(batch, query_length, kv_heads, heads // kv_heads, width).astype(precision)
    output = factor * jnp.einsum("bqkgw,bkwv->bqkgv", grouped, state, preferred_element_type=precision)
    return output.reshape(batch, query_length, heads, value.shape[3]).astype(query.dtype)


class LinearState(NamedTuple):
    """What causal linear attention carries from token to token, in float32 or wider.

    Attributes:
      memory: Σ key valueᵀ, decayed.
      total: Σ key, decayed, by which `normalise` divides; also carried without it.
    """

    memory: Float[Array, "*batch kv_heads width value_width"]
    total: Float[Array, "*batch kv_heads width"]

    @staticmethod
    def zeros(batch: tuple[int, ...], kv_heads: int, width: int, value_width: int, dtype: Any = None) -> "LinearState":
        """Before the first token."""
        precision = accumulator(jnp.dtype(dtype or jnp.float32))
        shape = (*batch, kv_heads, width)
        return LinearState(jnp.zeros((*shape, value_width), precision), jnp.zeros(shape, precision))


def causal_linear_attention(
    query: Float[Array, "*batch length heads width"],
    key: Float[Array, "*batch length kv_heads width"],
    value: Float[Array, "*batch length kv_heads value_width"],
    *,
    log_decay: Array | np.ndarray | None = None,
    delta_rate: Array | np.ndarray | None = None,
    feature_map: Callable[[Array], Array] | None = None,
    normalise: bool = False,
    scale: float | None = None,
    state: LinearState | None = None,
    return_state: bool = False,
    chunk: int | None = None,
    implementation: str | None = None,
) -> Any:
    """scale · query_i S_i with a state S that each token decays and adds to; linear in length, in all derivatives.

    The update is S_i = exp(log_decay_i) S_{i-1} + key_i value_iᵀ (Hebbian; Katharopoulos et al. 2020, arXiv
    2006.16236; with decay Qin et al. 2024, arXiv 2405.17381), or by the delta rule, which first takes away what the
    key reads (Schlag et al. 2021, arXiv 2102.11174; with decay Yang et al. 2024, arXiv 2412.06464):
    S_i = exp(log_decay_i) S_{i-1} + delta_rate_i key_i (value_i - exp(log_decay_i) S_{i-1}ᵀ key_i)ᵀ.
    Chunk by chunk: within a chunk all pairs, between chunks the state. Sums are float32 or wider. Differentiable any
    number of times, in either mode, with respect to all arrays.

    Args:
      log_decay: the logarithm of what is kept, at most 0: (kv_heads,) for a constant of each head, or anything that
        broadcasts to (*batch, length, kv_heads). None: nothing is forgotten.
      delta_rate: the rate of the delta rule, which broadcasts likewise, between 0 and 1 (2) for keys of length 1.
      feature_map: applied to query and key first, along the last axis.
      normalise: divide by the sum of a row's weights; a row whose weights sum to 0 gives 0. Not with the delta rule.
      scale: factor on the output, width ** -0.5 by default; with `normalise` 1.
      state: the state before the first token; zero by default.
      return_state: whether to return the state after the last token too.
      chunk: tokens computed at once; None: by rule.
      implementation: "reference" (quadratic), "xla", "gpu", "tpu", or None for the platform's own.

    Returns:
      The output (*batch, length, heads, value_width) in the query's dtype, or (output, LinearState).

    Raises:
      ValueError, TypeError: arguments that do not fit, named.
    """
    grid = attention_grid(query, key, value)
    check_name(implementation)
    if grid.rows != grid.columns:
        raise ValueError(f"query and key must have the same length; got {grid.rows} and {grid.columns}")
    if normalise and delta_rate is not None:
        raise ValueError("normalise does not go with delta_rate: the delta rule's weights do not sum to anything")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1; got {chunk}")
    if feature_map is not None:
        query, key = feature_map(query), feature_map(key)
        grid = attention_grid(query, key, value)
    dtype, precision = query.dtype, accumulator(query.dtype)
    queries = grid.queries(query)[..., 0, :]
    keys, values = grid.keys(key)[:, :, :, 0], grid.keys(value)[:, :, :, 0]
    decay = _by_token("log_decay", log_decay, grid, precision)
    quadratic = implementation == "reference"
    options = {} if quadratic else {"tiles": chunk and Tiles(chunk, chunk), "implementation": implementation}
    multiply = reference.decayed_product if quadratic else derivatives.decayed_product
    solve = reference.unit_solve if quadratic else derivatives.unit_solve
    if quadratic:
        decay = jnp.broadcast_to(decay, (*decay.shape[:-1], grid.rows))
        queries, keys, values = (array.astype(precision) for array in (queries, keys, values))
    memory, total = _on_grid(state, grid, key.shape[-1], value.shape[-1])
    added, kept = values, jnp.ones(())
    if memory is not None:
        kept = jnp.exp(jnp.broadcast_to(decay, (*decay.shape[:-1], grid.rows)).cumsum(axis=-1))[..., None]
    if delta_rate is not None:
        rate = _by_token("delta_rate", delta_rate, grid, precision)[..., None]
        target = values.astype(precision)
        if memory is not None:
            target = target - kept * _read(keys, memory)
        rated = (rate * keys).astype(keys.dtype)
        added = solve(rated, keys, (rate * target).astype(values.dtype), decay, **options)
    if normalise:
        added = jnp.concatenate([added, jnp.ones_like(added[..., :1])], axis=-1)
    output = multiply(queries, keys, added, decay, **options).astype(precision)
    if memory is not None:
        start = jnp.concatenate([memory, total[..., None]], axis=-1) if normalise else memory
        output = output + kept * _read(queries, start)
    if normalise:
        output, sums = output[..., :-1], output[..., -1:]
        output = jnp.where(sums == 0, 0, output / jnp.where(sums == 0, 1, sums))
    factor = (1.0 if normalise else query.shape[-1] ** -0.5) if scale is None else scale
    output = grid.outputs((factor * output).astype(dtype)[..., None, :])
    if not return_state:
        return output
    return output, _last(keys, added[..., : value.shape[-1]], decay, memory, total, grid)


def linear_attention_step(
    state: LinearState,
    query: Float[Array, "*batch heads width"],
    key: Float[Array, "*batch kv_heads width"],
    value: Float[Array, "*batch kv_heads value_width"],
    *,
    log_decay: Array | np.ndarray | None = None,
    delta_rate: Array | np.ndarray | None = None,
    feature_map: Callable[[Array], Array] | None = None,
    normalise: bool = False,
    scale: float | None = None,
) -> tuple[Float[Array, "*batch heads value_width"], LinearState]:
    """One token of `causal_linear_attention`, for decoding: time and memory do not depend on how many came before.

    log_decay and delta_rate broadcast to (*batch, kv_heads).

    Raises:
      ValueError, TypeError: arguments that do not fit, named.
    """
    grid = attention_grid(query[..., None, :, :], key[..., None, :, :], value[..., None, :, :])
    if normalise and delta_rate is not None:
        raise ValueError("normalise does not go with delta_rate: the delta rule's weights do not sum to anything")
    if feature_map is not None:
        query, key = feature_map(query), feature_map(key)
    precision = state.memory.dtype
    wide = key.astype(precision)
    memory, total = state
    if log_decay is not None:
        keep = jnp.exp(jnp.asarray(log_decay, precision))
        memory, total = keep[..., None, None] * memory, keep[..., None] * total
    new = value.astype(precision)
    if delta_rate is not None:
        held = jnp.einsum("...kwv,...kw->...kv", memory, wide)
        new = jnp.asarray(delta_rate, precision)[..., None] * (new - held)
    memory, total = memory + wide[..., None] * new[..., None, :], total + wide
    split = query.astype(precision).reshape(*query.shape[:-2], grid.kv_heads, grid.groups, query.shape[-1])
    output = jnp.einsum("...kgw,...kwv->...kgv", split, memory)
    if normalise:
        sums = jnp.einsum("...kgw,...kw->...kg", split, total)[..., None]
        output = jnp.where(sums == 0, 0, output / jnp.where(sums == 0, 1, sums))
    factor = (1.0 if normalise else query.shape[-1] ** -0.5) if scale is None else scale
    output = (factor * output).reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype)
    return output, LinearState(memory, total)


def _by_token(name: str, array: Any, grid: Grid, dtype: Any) -> Float[Array, "#flat #kv_heads 1 #length"]:
    """Numbers for tokens and key heads on the grid; 1 along what they do not vary."""
    if array is None:
        return jnp.zeros((1, 1, 1, 1), dtype)
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point; got {array.dtype}")
    want = (*grid.batch, grid.rows, grid.kv_heads)
    shape = (1,) * (len(want) - array.ndim) + array.shape
    if array.ndim > len(want) or any(have not in (1, full) for have, full in zip(shape, want, strict=True)):
        raise ValueError(f"{name} must broadcast to (*batch, length, kv_heads) = {want}; got {array.shape}")
    *batch, length, heads = shape
    flat = 1
    if any(size != 1 for size in batch):
        flat, batch = grid.problems[0], list(grid.batch)
    placed = jnp.broadcast_to(array.reshape(shape), (*batch, length, heads)).reshape(flat, length, heads)
    return jnp.moveaxis(placed, 1, 2)[:, :, None].astype(dtype)


def _on_grid(state: LinearState | None, grid: Grid, width: int, value_width: int) -> tuple[Any, Any]:
    if state is None:
        return None, None
    want = (*grid.batch, grid.kv_heads, width)
    if state.memory.shape != (*want, value_width) or state.total.shape != want:
        raise ValueError(
            f"state must have memory {(*want, value_width)} and total {want}; "
            f"got {state.memory.shape} and {state.total.shape}"
        )
    flat = (grid.problems[0], grid.kv_heads, 1)
    return state.memory.reshape(*flat, width, value_width), state.total.reshape(*flat, width)


def _read(query: Array, memory: Array) -> Array:
    """What queries of every group read of their key head's memory."""
    return jnp.einsum("bkgnw,bkwv->bkgnv", query.astype(memory.dtype), memory[:, :, 0])


def _last(keys: Array, added: Array, decay: Array, memory: Any, total: Any, grid: Grid) -> LinearState:
    """The state after the last token."""
    precision = accumulator(keys.dtype)
    tokens = jnp.broadcast_to(decay, (*decay.shape[:-1], grid.rows))
    # What is kept of a token is what follows it; a sum from the end, so that nothing cancels.
    behind = jnp.flip(jnp.flip(tokens, -1).cumsum(axis=-1), -1) - tokens
    kept = jnp.exp(behind)[..., None] * keys.astype(precision)
    new_memory = jnp.einsum("bkgnw,bkgnv->bkwv", kept, added.astype(precision))
    new_total = kept.sum(axis=(2, 3))
    if memory is not None:
        whole = jnp.exp(tokens.sum(axis=-1))[..., None]
        new_memory, new_total = new_memory + (whole[..., None] * memory)[:, :, 0], new_total + (whole * total)[:, :, 0]
    lead = (*grid.batch, grid.kv_heads)
    return LinearState(new_memory.reshape(*lead, *new_memory.shape[2:]), new_total.reshape(*lead, new_total.shape[-1]))
