"""Softmax attention written to be read: quadratic in length, and the oracle every faster kernel must match."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kernels.shapes import check_attention_arguments, check_mask


def attention(
    query: Float[Array, "batch query_length heads width"],
    key: Float[Array, "batch key_length kv_heads width"],
    value: Float[Array, "batch key_length kv_heads value_width"],
    *,
    mask: Bool[Array, "#batch #heads #query_length #key_length"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch query_length heads value_width"]:
    """softmax(scale · query keyᵀ) value, head by head (Vaswani et al. 2017, equation 1).

    Query head h reads key head h // (heads / kv_heads). Scores and weights are float32 or wider whatever the
    inputs' dtype; the output has the query's dtype. A row whose mask is all False gives 0, and gradient 0. What
    no row may read (padding, say) is never seen, be it NaN; a NaN that one row reads may spoil the rows beside it.

    Args:
      mask: True where a query may read a key; every axis broadcasts.
      scale: factor on the scores, width ** -0.5 by default.

    Raises:
      ValueError, TypeError: shapes or dtypes that do not fit, named.
    """
    check_attention_arguments(query, key, value)
    batch, query_length, heads, width = query.shape
    key_length, kv_heads = key.shape[1:3]
    precision = jnp.promote_types(query.dtype, jnp.float32)
    factor = width**-0.5 if scale is None else scale
    # A problem for each batch entry and key head: the rows of all query heads that read it against its keys.
    problems, rows = batch * kv_heads, heads // kv_heads * query_length
    queries = jnp.moveaxis(query, 1, 2).reshape(problems, rows, width)
    keys = jnp.moveaxis(key, 1, 3).reshape(problems, width, key_length)
    values = jnp.moveaxis(value, 1, 3).reshape(problems, value.shape[3], key_length)
    allowed = reading = jnp.bool_(key_length > 0)
    if mask is not None:
        check_mask(mask, (batch, heads, query_length, key_length))
        allowed = jnp.broadcast_to(mask, (batch, heads, query_length, key_length)).reshape(problems, rows, key_length)
        # Weights and gradients are 0 where nothing is read, but 0 · NaN is NaN: rows that read nothing and keys
        # that no row reads are zeroed before they are multiplied.
        reading, read = allowed.any(axis=2, keepdims=True), allowed.any(axis=1, keepdims=True)
        queries, keys, values = jnp.where(reading, queries, 0), jnp.where(read, keys, 0), jnp.where(read, values, 0)
    scores = factor * jnp.einsum("prw,pws->prs", queries, keys, preferred_element_type=precision)
    scores = jnp.where(allowed, scores, -jnp.inf)
    # The shift is finite even where a row has nothing to read, so that exp(-inf - shift) = 0.
    lowest = jnp.finfo(precision).min
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=2, keepdims=True, initial=lowest))
    exponentials = jnp.exp(scores - highest)
    total = exponentials.sum(axis=2, keepdims=True)
    summed = jnp.einsum("prs,pvs->prv", exponentials, values.astype(precision), preferred_element_type=precision)
    output = jnp.where(reading, summed / jnp.where(reading, total, 1), 0)
    return jnp.moveaxis(output.reshape(batch, heads, query_length, value.shape[3]), 1, 2).astype(query.dtype)
