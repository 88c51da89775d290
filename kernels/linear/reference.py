"""Linear attention written to be read: every key read, no softmax, no normaliser."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.shapes import attention_grid


def linear_attention(
    query: Float[Array, "batch query_length heads width"],
    key: Float[Array, "batch key_length kv_heads width"],
    value: Float[Array, "batch key_length kv_heads value_width"],
    *,
    scale: float | None = None,
) -> Float[Array, "batch query_length heads value_width"]:
    """scale · query (keyᵀ value), head by head: attention whose weights are its scores.

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
