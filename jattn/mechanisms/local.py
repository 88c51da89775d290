"""Local attention: blocks of queries that see their own block and some keys before it."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

import kernels
from jattn.mechanisms.causal_self_attention import CausalSelfAttention
from kernels import masks


def local_attention(
    query: Float[Array, "batch length heads width"],
    key: Float[Array, "batch length heads width"],
    value: Float[Array, "batch length heads value_width"],
    block: int,
    look_back: int,
    *,
    implementation: str | None = None,
) -> Float[Array, "batch length heads value_width"]:
    """Causal attention to the keys of a query's own block and to the `look_back` keys before that block.

    As the local heads of Roy et al. (2021, arXiv 2003.05997) with block = look_back = 256. Work is linear in length.

    Raises:
      ValueError: block is below 1, or look_back below 0.
    """
    mask = masks.Local(block, look_back, "start")
    return kernels.attention(query, key, value, mask=mask, implementation=implementation)


class LocalState(NamedTuple):
    """What decoding carries: the last block + look_back keys and values, the newest last."""

    keys: Float[Array, "batch recent heads width"]
    values: Float[Array, "batch recent heads value_width"]

    @staticmethod
    def after(
        keys: Float[Array, "batch length heads width"],
        values: Float[Array, "batch length heads value_width"],
        block: int,
        look_back: int,
    ) -> "LocalState":
        """Of a prompt, which may be empty."""
        length, recent = keys.shape[1], block + look_back
        before = [(0, 0), (max(recent - length, 0), 0), (0, 0), (0, 0)]
        return LocalState(*(jnp.pad(each[:, max(length - recent, 0) :], before) for each in (keys, values)))


def local_attention_step(
    state: LocalState,
    position: Int[Array, ""],
    query: Float[Array, "batch heads width"],
    key: Float[Array, "batch heads width"],
    value: Float[Array, "batch heads value_width"],
    look_back: int,
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch heads value_width"], LocalState]:
    """What the token at `position` reads, and the state after it: one row of `local_attention`."""
    keys, values = (
        jnp.concatenate([old[:, 1:], new[:, None]], axis=1) for old, new in zip(state, (key, value), strict=True)
    )
    recent = keys.shape[1]
    block = recent - look_back
    seen = jnp.minimum(position % block + look_back, position) + 1
    mask = ~masks.Prefix(recent - seen)
    read = kernels.attention(query[:, None], keys, values, mask=mask, implementation=implementation)
    return read[:, 0], LocalState(keys, values)


class LocalAttention(CausalSelfAttention):
    """Causal self-attention with rotary positions whose heads read `local_attention`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        block: int = 256,
        look_back: int = 256,
        base: float = 10000.0,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(width, heads, base=base, implementation=implementation, rngs=rngs)
        self.block, self.look_back = block, look_back

    def attend(
        self,
        query: Float[Array, "batch length heads head_dim"],
        key: Float[Array, "batch length heads head_dim"],
        value: Float[Array, "batch length heads value_dim"],
    ) -> Float[Array, "batch length heads value_dim"]:
        """What each head reads, before the output projection."""
        return local_attention(query, key, value, self.block, self.look_back, implementation=self.implementation)
