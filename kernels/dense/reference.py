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
    # Axes from here on: batch, key head, query head within its group, query row, then key or width.
    groups = (batch, kv_heads, heads // kv_heads, query_length)
    query_rows = jnp.moveaxis(query, 1, 2).reshape(*groups, width)
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
    allowed = reading = jnp.bool_(True)
    if mask is not None:
        check_mask(mask, (batch, heads, query_length, key_length))
        allowed = jnp.broadcast_to(mask, (batch, heads, query_length, key_length)).reshape(*groups, key_length)
        # Weights and gradients are 0 where nothing is read, but 0 · NaN is NaN: rows that read nothing and keys
        # that no row reads are zeroed before they are multiplied.
        reading = allowed.any(axis=-1, keepdims=True)
        read = allowed.any(axis=(2, 3))[..., None]
        query_rows, key, value = jnp.where(reading, query_rows, 0), jnp.where(read, key, 0), jnp.where(read, value, 0)
    scores = factor * jnp.einsum("bkgqw,bksw->bkgqs", query_rows, key, preferred_element_type=precision)
    scores = jnp.where(allowed, scores, -jnp.inf)
    # Shifting by a finite number keeps exp(-inf - shift) = 0 where a row has nothing to read.
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    exponentials = jnp.exp(scores - jnp.where(jnp.isfinite(highest), highest, 0))
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = exponentials / jnp.where(total == 0, 1, total)
    output = jnp.einsum("bkgqs,bksv->bkgqv", weights, value.astype(precision), preferred_element_type=precision)
    output = jnp.where(reading, output, 0).reshape(batch, heads, query_length, value.shape[-1])
    return jnp.moveaxis(output, 1, 2).astype(query.dtype)
