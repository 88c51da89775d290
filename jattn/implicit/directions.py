"""Directions to try things in: as if at random, always the same, and made in one pass.

A generator of `jax.random` would take a hundred operations, which a small program would feel.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt32


def random_direction(like: Any) -> Any:
    """Of length 1, with entries that differ in sign alone."""
    count = max(1, sum(jnp.size(leaf) for leaf in jax.tree.leaves(like)))
    return optax.tree.scale(count**-0.5, random_signs(like))


def random_signs(like: Any, stream: UInt32[Array, ""] | int = 0) -> Any:
    """1 or -1 for each entry of a tree; other ones in another stream."""
    leaves, structure = jax.tree.flatten(like)
    first, signs = 0, []
    for leaf in leaves:
        positive = _bits(jnp.size(leaf), first, stream) >> 31 == 1
        signs.append(jnp.where(positive, 1, -1).astype(jnp.result_type(leaf)).reshape(jnp.shape(leaf)))
        first += jnp.size(leaf)
    return structure.unflatten(signs)


def random_sizes(like: Float[Array, " entries"]) -> Float[Array, " entries"]:
    """From 1 to 2 for each entry."""
    return 1 + (_bits(like.size, 0, 0) & 0xFFFF).astype(like.dtype) / 2**16


def _bits(size: int, first: int, stream: UInt32[Array, ""] | int) -> UInt32[Array, " size"]:
    """Of the numbers from `first`: the 32-bit hash "lowbias32" of C. Wellons, "Hash function prospector", 2018."""
    bits = jnp.arange(size, dtype=jnp.uint32) + jnp.uint32(first) + jnp.uint32(0x9E3779B9) * jnp.uint32(stream)
    bits = (bits ^ bits >> 16) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ bits >> 15) * jnp.uint32(0x846CA68B)
    return bits ^ bits >> 16
