"""Causal multi-head attention with rotary positions: what plain decoders have, and other mechanisms start from."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

import kernels
from jattn.layers.positions import rotate_by_position

CAUSAL = kernels.masks.Causal("start")


class CausalSelfAttention(nnx.Module):
    """Σ over heads of softmax(q kᵀ / √head_dim) v W_o, over a token and those before it. No biases.

    Queries and keys are turned by their positions. Query head h reads key head h // (heads / kv_heads).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        base: float = 10000.0,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or width % (2 * heads):
            raise ValueError(f"heads must cut the width of {width} into even parts; got {heads}")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide the {heads} heads; got {kv_heads}")
        self.width, self.heads, self.kv_heads, self.base = width, heads, kv_heads, base
        self.implementation = implementation
        narrow = width // heads * kv_heads
        self.query = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(width, narrow, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, narrow, use_bias=False, rngs=rngs)
        self.output = nnx.Linear(width, width, use_bias=False, rngs=rngs)

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
        head_dim = self.width // self.heads
        query, key, value = (
            layer(features).reshape(*features.shape[:2], -1, head_dim) for layer in (self.query, self.key, self.value)
        )
        query, key = (rotate_by_position(each, positions, self.base) for each in (query, key))
        return query, key, value

    def attend(
        self,
        query: Float[Array, "batch length heads head_dim"],
        key: Float[Array, "batch length kv_heads head_dim"],
        value: Float[Array, "batch length kv_heads head_dim"],
    ) -> Float[Array, "batch length heads head_dim"]:
        """What each head reads, before the output projection."""
        return kernels.attention(query, key, value, mask=CAUSAL, implementation=self.implementation)

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
        read = self.attend(*self.project(features, positions))
        return self.output(read.reshape(features.shape))
