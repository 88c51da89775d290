"""Softmax attention written to be read: quadratic in length, and the oracle every faster kernel must match."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kernels.shapes import check_attention_arguments


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
    inputs' dtype; the output has the query's dtype. A row whose mask is all False gives 0, and gradient 0.

    Args:
      mask: True where a query may read a key; every axis broadcasts.
      scale: factor on the scores, width ** -0.5 by default.

    Raises:
      ValueError, TypeError: shapes or dtypes that do not fit, named.
    """
    check_attention_arguments(query, key, value)
    batch, query_length, heads, width = query.shape
    kv_heads = key.shape[2]
    precision = jnp.promote_types(query.dtype, jnp.float32)
    scale = width**-0.5 if scale is None else scale
    grouped = query.reshape(batch, query_length, kv_heads, heads // kv_heads, width)
    scores = scale * jnp.einsum("bqkgw,bskw->bkgqs", grouped, key, preferred_element_type=precision)
    if mask is not None:
        if mask.ndim != 4:
            raise ValueError(f"mask must have shape (batch, heads, query_length, key_length); got {mask.shape}")
        allowed = jnp.broadcast_to(mask, (batch, heads, query_length, key.shape[1])).reshape(scores.shape)
        scores = jnp.where(allowed, scores, -jnp.inf)
    # Shifting by a finite number keeps exp(-inf - shift) = 0 where a row has nothing to read.
    highest = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    exponentials = jnp.exp(scores - jnp.where(jnp.isfinite(highest), highest, 0))
    total = exponentials.sum(axis=-1, keepdims=True)
    weights = exponentials / jnp.where(total == 0, 1, total)
    output = jnp.einsum("bkgqs,bskv->bqkgv", weights, value.astype(precision), preferred_element_type=precision)
    return output.reshape(batch, query_length, heads, value.shape[3]).astype(query.dtype)
