"""The projections of multi-head attention, and softmax attention between them with every tap it has."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import kernels
from jattn.layers.taps import asked, replaced, tap, wanted
from kernels.masks.algebra import Mask


class AttentionHeads(nnx.Module):
    """Queries, keys and values of each head, softmax attention between them, and the projection of what heads read.

    Query head h reads key head h // (heads / kv_heads). Sites: query, key, value (made by those who call `split`),
    key_of_head and value_of_head (keys and values once for every query head, made where they are wanted), scores,
    weights, statistics, head_output; and the function attention, `kernels.attention` unless it is replaced.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Projections of features of that width.

        Args:
          head_dim: of each head, width / heads by default.
          bias: whether all four projections have one.
          scale, softcap, implementation: as in `kernels.attention`.
        """
        if heads < 1 or (head_dim is None and width % heads):
            raise ValueError(f"heads must cut the width of {width} into even parts; got {heads}")
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide the {heads} heads; got {kv_heads}")
        self.width, self.heads, self.kv_heads = width, heads, kv_heads
        self.head_dim = width // heads if head_dim is None else head_dim
        self.scale, self.softcap, self.implementation = scale, softcap, implementation
        wide, narrow = heads * self.head_dim, kv_heads * self.head_dim
        self.query = nnx.Linear(width, wide, use_bias=bias, rngs=rngs)
        self.key = nnx.Linear(width, narrow, use_bias=bias, rngs=rngs)
        self.value = nnx.Linear(width, narrow, use_bias=bias, rngs=rngs)
        self.output = nnx.Linear(wide, width, use_bias=bias, rngs=rngs)

    def split(
        self, projected: Float[Array, "batch length features"]
    ) -> Float[Array, "batch length heads_of_these head_dim"]:
        """What a projection gives, head by head."""
        return projected.reshape(*projected.shape[:2], -1, self.head_dim)

    def read(
        self,
        query: Float[Array, "batch query_length heads head_dim"],
        key: Float[Array, "batch key_length kv_heads head_dim"],
        value: Float[Array, "batch key_length kv_heads head_dim"],
        mask: Mask | None,
    ) -> Float[Array, "batch query_length heads head_dim"]:
        """What each head reads, before the output projection.

        Scores and weights are made only if the handler of taps wants them, in memory quadratic in length; they are
        what is read by only if the handler has changed them. Statistics can be seen, not changed.
        """
        if wanted("key_of_head") or wanted("value_of_head"):
            groups = self.heads // self.kv_heads
            key = tap("key_of_head", jnp.repeat(key, groups, axis=2))
            value = tap("value_of_head", jnp.repeat(value, groups, axis=2))
        requests = asked("statistics")
        read = replaced("attention", kernels.attention)(
            query, key, value, mask=mask, scale=self.scale, softcap=self.softcap,
            statistics=requests, implementation=self.implementation,
        )  # fmt: skip
        if requests:
            read, found = read
            tap("statistics", found)
        if not (wanted("scores") or wanted("weights")):
            return read
        scores = self._scores(query, key, mask)
        seen = tap("scores", scores)
        reads = (seen > -jnp.inf).any(axis=-1, keepdims=True)
        weights = jax.nn.softmax(jnp.where(reads, seen, 0), axis=-1) * reads
        used = tap("weights", weights)
        return read if seen is scores and used is weights else self._read_by(used, value).astype(read.dtype)

    def write(self, read: Float[Array, "batch length heads head_dim"]) -> Float[Array, "batch length width"]:
        """The sum over heads of what each makes of what it read."""
        read = tap("head_output", read)
        return self.output(read.reshape(*read.shape[:2], -1))

    def _scores(self, query: Array, key: Array, mask: Mask | None) -> Float[Array, "batch heads queries keys"]:
        """As `kernels.attention` defines them, in float32 or wider."""
        wide = jnp.promote_types(query.dtype, jnp.float32)
        grouped = query.reshape(*query.shape[:2], key.shape[2], -1, self.head_dim)
        scores = jnp.einsum("bqkgd,bskd->bkgqs", grouped, key, preferred_element_type=wide)
        scores = scores.reshape(len(query), self.heads, query.shape[1], key.shape[1])
        scores = scores * (self.head_dim**-0.5 if self.scale is None else self.scale)
        if self.softcap is not None:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        return scores if mask is None else jnp.where(mask.dense(*scores.shape), scores, -jnp.inf)

    def _read_by(self, weights: Array, value: Array) -> Float[Array, "batch queries heads head_dim"]:
        batch, heads, queries, keys = weights.shape
        grouped = weights.reshape(batch, value.shape[2], -1, queries, keys)
        read = jnp.einsum("bkgqs,bskd->bqkgd", grouped, value.astype(weights.dtype))
        return read.reshape(batch, queries, heads, -1)
