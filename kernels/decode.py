"""Decoding: few query rows against a long cache of keys and values, split over the keys so that all cores have work."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels.attention import attention
from kernels.masks.positions import Causal
from kernels.merge import merge


def decode(
    query: Float[Array, "batch query_length heads width"],
    key_cache: Float[Array, "batch key_length kv_heads width"],
    value_cache: Float[Array, "batch key_length kv_heads value_width"],
    lengths: Array | np.ndarray,
    *,
    splits: int = 1,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Float[Array, " heads"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "batch query_length heads value_width"]:
    """Attention of the last query rows over the filled part of a cache.

    The row r of R may read keys up to its own position lengths - R + r, so the cache already holds what belongs to
    the rows. What lies behind `lengths` is never seen. With `splits` the keys are cut into that many parts, attended
    to side by side and merged exactly: one row alone leaves most of an accelerator idle.

    Args:
      lengths: integers (batch,): how many keys of each sequence are filled.
      splits: parts of the keys; divides key_length.

    Raises:
      ValueError, TypeError: arguments that do not fit, named; see `attention`.
    """
    batch, rows = query.shape[:2]
    length = key_cache.shape[1]
    if splits < 1 or length % splits:
        raise ValueError(f"splits must divide the cache's {length} keys; got {splits}")
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths must be integers of shape ({batch},); got {lengths.dtype} of shape {lengths.shape}")
    part = length // splits
    keys, values = (
        jnp.moveaxis(cache.reshape(batch, splits, part, *cache.shape[2:]), 1, 0) for cache in (key_cache, value_cache)
    )
    # Within part p the key of local index j stands at position p · part + j.
    align = lengths[None] - rows - part * jnp.arange(splits)[:, None]
    outputs, found = attention(
        jnp.broadcast_to(query, (splits, *query.shape)),
        keys,
        values,
        mask=Causal(align),
        scale=scale,
        softcap=softcap,
        statistics=("lse",),
        implementation=implementation,
    )
    lses = found.lse
    if sink is not None:
        # One more part, which gives no value.
        outputs = jnp.concatenate([outputs, jnp.zeros_like(outputs[:1])])
        lses = jnp.concatenate([lses, jnp.broadcast_to(sink[:, None].astype(lses.dtype), lses[:1].shape)])
    return merge(outputs, lses)[0]
