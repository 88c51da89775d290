"""Causal multi-head attention: what decoders have, pretrained or trained here, and other mechanisms start from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

import kernels
from jattn.layers.attention_heads import AttentionHeads
from jattn.layers.positions import rotate_by_position
from jattn.layers.taps import tap
from kernels.masks.algebra import Mask

CAUSAL = kernels.masks.Causal("start")


class KeyValueCache(NamedTuple):
    """Keys, turned by position, and values of the tokens read so far, at their positions; behind them is room.

    Heads come before tokens, as kernels have them: a step of decoding moves nothing but the new token.
    """

    key: Float[Array, "batch kv_heads capacity head_dim"]
    value: Float[Array, "batch kv_heads capacity head_dim"]


class CausalSelfAttention(AttentionHeads):
    """Σ over heads of softmax(q kᵀ · scale) v W_o, over a token and those before it."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        base: float | None = 10000.0,
        window: int | None = None,
        bias: bool = False,
        norm_epsilon: float | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        """See `AttentionHeads` for what is not here.

        Args:
          base: of the angles by which positions turn queries and keys; None: they do not.
          window: how many tokens a token reads at most, itself among them; None: all before it.
          norm_epsilon: of RMS norms of each query and each key before they are turned; None: there are none.
        """
        if base is not None and (heads < 1 or (width // heads if head_dim is None else head_dim) % 2):
            raise ValueError(f"heads must cut the width of {width} into even parts; got {heads}")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1; got {window}")
        super().__init__(
            width, heads, kv_heads=kv_heads, head_dim=head_dim, bias=bias, scale=scale, softcap=softcap,
            implementation=implementation, rngs=rngs,
        )  # fmt: skip
        self.base, self.window = base, window
        normed = norm_epsilon is not None
        self.query_norm = nnx.RMSNorm(self.head_dim, epsilon=norm_epsilon, rngs=rngs) if normed else None
        self.key_norm = nnx.RMSNorm(self.head_dim, epsilon=norm_epsilon, rngs=rngs) if normed else None

    def project(
        self,
        features: Float[Array, "batch length width"],
        positions: Int[Array, "#batch length"] | Int[Array, " length"] | None = None,
    ) -> tuple[
        Float[Array, "batch length heads head_dim"],
        Float[Array, "batch length kv_heads head_dim"],
        Float[Array, "batch length kv_heads head_dim"],
    ]:
        """Queries and keys, turned by position, and values."""
        positions = jnp.arange(features.shape[1]) if positions is None else positions
        query, key, value = (self.split(layer(features)) for layer in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = self.turn(query, positions), self.turn(key, positions)
        return tap("query", query), tap("key", key), tap("value", value)

    def turn(
        self,
        features: Float[Array, "*batch length heads head_dim"],
        positions: Int[Array, "#*batch length"] | Int[Array, " length"],
    ) -> Float[Array, "*batch length heads head_dim"]:
        """Queries or keys turned by their positions."""
        return features if self.base is None else rotate_by_position(features, positions, self.base)

    def attend(
        self,
        query: Float[Array, "batch length heads head_dim"],
        key: Float[Array, "batch length kv_heads head_dim"],
        value: Float[Array, "batch length kv_heads head_dim"],
    ) -> Float[Array, "batch length heads head_dim"]:
        """What each head reads, before the output projection."""
        return self.read(query, key, value, self.mask())

    def __call__(
        self,
        features: Float[Array, "batch length width"],
        *,
        positions: Int[Array, "#batch length"] | Int[Array, " length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """The output of every token.

        Args:
          positions: by which queries and keys are turned, from 0 by default; only differences count. Who is before
            whom is a matter of order, not of positions.
        """
        return self.write(self.attend(*self.project(features, positions)))

    def empty_cache(self, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> KeyValueCache:
        """Room for that many tokens of each text."""
        room = jnp.zeros((batch, self.kv_heads, capacity, self.head_dim), dtype)
        return KeyValueCache(room, room)

    def extend(
        self, features: Float[Array, "batch length width"], cache: KeyValueCache, lengths: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch length width"], KeyValueCache]:
        """The output of the next tokens of each text, and the cache with them; there must be room for them.

        Args:
          lengths: tokens of each text that were read before. What the cache holds behind them is written over.
        """
        query, key, value = self.project(features, lengths[:, None] + jnp.arange(features.shape[1]))
        cache = KeyValueCache(_put(cache.key, key, lengths), _put(cache.value, value, lengths))
        # Of the queries' dtype, as keys and values are without a cache.
        keys, values = (each.swapaxes(1, 2).astype(query.dtype) for each in cache)
        return self.write(self.read(query, keys, values, self.mask(lengths))), cache

    def mask(self, align: str | Int[Array, " batch"] = "start") -> Mask:
        """Who may read whom; `align` as in `kernels.masks.Causal`."""
        return kernels.masks.Causal(align) if self.window is None else kernels.masks.Window(self.window - 1, 0, align)


@jax.vmap
def _put(
    cached: Float[Array, "kv_heads capacity head_dim"],
    new: Float[Array, "length kv_heads head_dim"],
    place: Int[Array, ""],
) -> Float[Array, "kv_heads capacity head_dim"]:
    return jax.lax.dynamic_update_slice_in_dim(cached, new.swapaxes(0, 1).astype(cached.dtype), place, 1)
