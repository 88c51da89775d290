"""Landmark attention over long text: what is past is cached by blocks, of which those with the best landmarks are read.

Mohtashami and Jaggi 2023, arXiv 2305.16300, section 3.2, with the positions of the released code. Text goes through in
chunks. A token reads the chunk up to itself, the block that was unfinished before it, and `top_k` finished blocks, all
by one grouped softmax. A block is read at positions that depend on what else is read, so that few positions serve text
of any length: it is cached turned as if it came first, and a query is turned back by the place at which it reads it.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int

import kernels
from jattn.layers.positions import rotate_by_position
from jattn.mechanisms.causal_self_attention import CausalSelfAttention
from jattn.mechanisms.landmark import grouped_attention, landmark_attention, landmark_scores

Retrieval = Literal["token_head", "token", "head"]
"""Who chooses blocks: every head of every token; every token, for all heads; every head, for all tokens of a chunk."""
Rotate = Callable[[Array, Array], Array]
"""Features (*batch, length, heads, width) turned by positions that broadcast to (*batch, length).

Turned by one position and then by another is turned by their sum, and products of queries and keys so turned depend on
positions by their differences alone.
"""


class LandmarkCache(NamedTuple):
    """Keys and values of finished blocks, earliest first, and of the block that is not finished yet.

    To choose blocks only `landmark` is looked at; of `key` and `value` only what is chosen.

    Attributes:
      key, landmark: of finished blocks, each turned as if its block began at position 0.
      count: finished blocks; those behind are no blocks.
      unfinished_key: before positions.
      unfinished: tokens of the unfinished block.
    """

    key: Float[Array, "batch capacity block kv_heads width"]
    value: Float[Array, "batch capacity block kv_heads value_width"]
    landmark: Float[Array, "batch capacity kv_heads width"]
    count: Int[Array, ""]
    unfinished_key: Float[Array, "batch block kv_heads width"]
    unfinished_value: Float[Array, "batch block kv_heads value_width"]
    unfinished: Int[Array, ""]

    @staticmethod
    def empty(
        batch: int, capacity: int, block: int, kv_heads: int, width: int, dtype: DTypeLike = jnp.float32
    ) -> "LandmarkCache":
        """Before any text, with room for that many blocks of `block` ordinary tokens."""
        if block < 1 or capacity < 1:
            raise ValueError(f"block and capacity must be at least 1; got {block} and {capacity}")
        blocks = jnp.zeros((batch, capacity, block, kv_heads, width), dtype)
        return LandmarkCache(
            blocks, blocks, blocks[:, :, 0], jnp.int32(0), blocks[:, 0], blocks[:, 0], jnp.int32(0)
        )  # fmt: skip

    @property
    def block(self) -> int:
        """Ordinary tokens of a block."""
        return self.key.shape[2]

    def begin(self, top_k: int) -> Int[Array, ""]:
        """The position of the unfinished block's first token when top_k blocks are read.

        Ahead of it are places for as many blocks and one more, so that what is far can be told from what is near.
        """
        return jnp.minimum(self.count, top_k + 1) * (self.block + 1)


def scoring_slots(count: Int[Array, ""] | int, capacity: int, top_k: int) -> Int[Array, " capacity"]:
    """At which block's place, from 0, each cached block's landmark stands when blocks are chosen.

    The last top_k blocks stand at their true distance, all others at the first place.
    """
    recent = jnp.arange(capacity) - jnp.maximum(count - top_k, 0)
    return jnp.where(recent >= 0, recent + (count > top_k), 0)


def reading_slots(chosen: Int[Array, "... top_k"], count: Int[Array, ""] | int) -> Int[Array, "... top_k"]:
    """At which block's place each chosen block is read, earliest first: side by side, with one place left free
    between those that are among the last top_k blocks and those that are not."""
    top_k = chosen.shape[-1]
    recent = (chosen >= count - top_k) & (count > top_k)
    return jnp.arange(top_k) + recent


def retrieve(
    query: Float[Array, "batch length heads width"],
    cache: LandmarkCache,
    top_k: int,
    retrieval: Retrieval = "token_head",
    *,
    rotate: Rotate = rotate_by_position,
    scale: float | None = None,
) -> Int[Array, "batch sets choosers top_k"]:
    """The finished blocks to read for a chunk of queries: those whose landmarks weigh most in a softmax over landmarks.

    Args:
      query: of the tokens that follow the cached ones, before positions.
      retrieval: who chooses, by the largest weight over tokens or heads that choose together.

    Returns:
      Numbers of blocks, earliest first; one that is not below `cache.count` is none. `sets` is the length, or 1 for
      "head"; `choosers` the heads, or 1 for "token".

    Raises:
      ValueError: there is no room for top_k blocks in the cache, or no such retrieval.
    """
    capacity = cache.key.shape[1]
    if not 0 <= top_k <= capacity:
        raise ValueError(f"top_k must be from 0 to the cache's {capacity} blocks; got {top_k}")
    _check_retrieval(retrieval)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    query = rotate(query, cache.begin(top_k) + cache.unfinished + jnp.arange(query.shape[1]))
    slots = scoring_slots(cache.count, capacity, top_k)
    landmarks = rotate(cache.landmark, slots * (cache.block + 1))
    finished = jnp.arange(capacity) < cache.count
    # Of finished blocks none has the logarithm -inf, however small its weight: it comes before those that are not.
    log_weights = jax.nn.log_softmax(landmark_scores(query, landmarks, factor), axis=-1, where=finished)
    log_weights = jnp.where(finished, log_weights, -jnp.inf)
    if retrieval != "token_head":
        log_weights = log_weights.max(axis=2 if retrieval == "token" else 1, keepdims=True)
    return jnp.sort(lax.top_k(log_weights, top_k)[1], axis=-1)


def attend_chunk(
    query: Float[Array, "batch length heads width"],
    key: Float[Array, "batch length kv_heads width"],
    value: Float[Array, "batch length kv_heads value_width"],
    cache: LandmarkCache,
    chosen: Int[Array, "batch sets choosers top_k"],
    *,
    rotate: Rotate = rotate_by_position,
    scale: float | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch length heads value_width"], LandmarkCache]:
    """What the tokens of a chunk read, and the cache after them.

    If every block that is finished is chosen this is `landmark_attention` over the whole text, in any chunks. A cache
    that has no room for all blocks gives NaN.

    Args:
      query, key, value: of the next tokens and landmarks of the text, before positions.
      chosen: which finished blocks are read (`retrieve`); no block at all for top_k 0.

    Raises:
      ValueError, TypeError: arrays do not fit; named.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    block, length = cache.block, query.shape[1]
    nothing = jnp.zeros((len(query), block, *query.shape[2:]), query.dtype)
    keys, values, queries = (
        _behind(kept.astype(new.dtype), new, cache.unfinished)
        for kept, new in ((cache.unfinished_key, key), (cache.unfinished_value, value), (nothing, query))
    )
    positions = cache.begin(chosen.shape[-1]) + jnp.arange(block + length)
    output, lse = grouped_attention(
        rotate(queries, positions), rotate(keys, positions), values, block, scale=factor, implementation=implementation
    )
    output, lse = (
        lax.dynamic_slice_in_dim(each, cache.unfinished, length, axis) for each, axis in ((output, 1), (lse, 2))
    )
    if chosen.shape[-1] > 0:
        slots = reading_slots(chosen, cache.count) * (block + 1)
        places = positions[:length] + cache.unfinished

        def read(number: Array) -> tuple[Array, Array]:
            which, slot = (lax.dynamic_index_in_dim(each, number, -1, keepdims=False) for each in (chosen, slots))
            at = jnp.broadcast_to(places[:, None] - slot, query.shape[:3])
            return _read_block(rotate(query[..., None, :], at)[..., 0, :], cache, which, factor, implementation)

        outputs, scores = lax.map(read, jnp.arange(chosen.shape[-1]))
        output, _ = kernels.merge(jnp.concatenate([output[None], outputs]), jnp.concatenate([lse[None], scores]))
    after = _append(cache, keys, values, cache.unfinished + length, rotate)
    return jnp.where(after.count > cache.key.shape[1], jnp.nan, output), after


def _behind(kept: Array, new: Array, place: Array) -> Array:
    """The new tokens from that place on, what was kept before them, and zeros or what was kept behind them."""
    room = jnp.pad(kept, [(0, 0), (0, new.shape[1]), (0, 0), (0, 0)])
    return lax.dynamic_update_slice_in_dim(room, new, place, 1)


def _read_block(
    query: Float[Array, "batch length heads width"],
    cache: LandmarkCache,
    which: Int[Array, "batch sets choosers"],
    scale: float,
    implementation: str | None,
) -> tuple[Float[Array, "batch length heads value_width"], Float[Array, "batch heads length"]]:
    """What each query reads of one block of its choice, and the score of the block's landmark; all turned."""
    batch, length, heads, width = query.shape
    sets, kv_heads = which.shape[1], cache.key.shape[3]
    entry, head = jnp.arange(batch)[:, None, None], jnp.arange(heads) * kv_heads // heads
    # (batch, sets, heads, block, width): every head has a block of its own, as if it were a batch entry.
    keys, values, landmarks = (
        each.astype(query.dtype)
        for each in (
            cache.key[entry, which, :, head],
            cache.value[entry, which, :, head],
            cache.landmark[entry, which, head][..., None, :],
        )
    )
    # Queries that read the same block are rows of one problem.
    rows = jnp.moveaxis(query.reshape(batch, sets, length // sets, heads, width), 3, 2)[..., None, :]
    output = kernels.attention(
        rows, keys[..., None, :], values[..., None, :], scale=scale, implementation=implementation
    )
    scores = landmark_scores(rows, landmarks[..., None, :], scale)
    output, scores = (jnp.moveaxis(each[..., 0, :], 2, 3) for each in (output, scores))
    output, scores = output.reshape(batch, length, heads, -1), scores.reshape(batch, length, heads)
    exists = jnp.repeat(jnp.broadcast_to(which < cache.count, (batch, sets, heads)), length // sets, axis=1)
    return output, jnp.moveaxis(jnp.where(exists, scores, -jnp.inf), 1, 2)


def _append(
    cache: LandmarkCache,
    keys: Float[Array, "batch kept kv_heads width"],
    values: Float[Array, "batch kept kv_heads value_width"],
    tokens: Int[Array, ""],
    rotate: Rotate,
) -> LandmarkCache:
    """The cache with the first `tokens` of those, which begin with its unfinished block."""
    size = cache.block + 1
    most, done = keys.shape[1] // size, tokens // size
    key, value = (each[:, : most * size].reshape(len(each), most, size, *each.shape[2:]) for each in (keys, values))
    key = rotate(key, jnp.arange(size))
    # What is not finished goes nowhere.
    places = jnp.where(jnp.arange(most) < done, cache.count + jnp.arange(most), cache.key.shape[1])

    def put(cached: Array, new: Array) -> Array:
        return cached.at[:, places].set(new.astype(cached.dtype), mode="drop")

    def rest(each: Array) -> Array:
        behind = jnp.pad(each, [(0, 0), (0, cache.block), (0, 0), (0, 0)])
        return lax.dynamic_slice_in_dim(behind, done * size, cache.block, 1)

    return LandmarkCache(
        put(cache.key, key[:, :, :-1]),
        put(cache.value, value[:, :, :-1]),
        put(cache.landmark, key[:, :, -1]),
        cache.count + done,
        rest(keys).astype(cache.unfinished_key.dtype),
        rest(values).astype(cache.unfinished_value.dtype),
        tokens - done * size,
    )


def _check_retrieval(retrieval: str) -> None:
    if retrieval not in get_args(Retrieval):
        raise ValueError(f"retrieval must be among {', '.join(get_args(Retrieval))}; got {retrieval!r}")


class LandmarkAttention(CausalSelfAttention):
    """Causal self-attention whose weights are those of `landmark_attention`; no parameters besides.

    Its input has a landmark behind every `block` tokens, which have positions as all tokens do.

    Attributes:
      top_k: finished blocks that a token reads when text goes through in chunks.
      retrieval: who chooses them.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        block: int,
        top_k: int,
        *,
        retrieval: Retrieval = "token_head",
        kv_heads: int | None = None,
        base: float = 10000.0,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(width, heads, kv_heads=kv_heads, base=base, implementation=implementation, rngs=rngs)
        if block < 1 or top_k < 0:
            raise ValueError(f"block must be at least 1 and top_k at least 0; got {block} and {top_k}")
        _check_retrieval(retrieval)
        self.block, self.top_k = block, top_k
        self.retrieval: Retrieval = retrieval

    def attend(
        self,
        query: Float[Array, "batch length heads head_dim"],
        key: Float[Array, "batch length kv_heads head_dim"],
        value: Float[Array, "batch length kv_heads head_dim"],
    ) -> Float[Array, "batch length heads head_dim"]:
        """What each head reads, before the output projection."""
        return landmark_attention(query, key, value, self.block, implementation=self.implementation)

    def empty_cache(self, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> LandmarkCache:
        """Before any text, with room for that many blocks."""
        return LandmarkCache.empty(batch, capacity, self.block, self.kv_heads, self.width // self.heads, dtype)

    def choose(
        self, query: Float[Array, "batch length heads head_dim"], cache: LandmarkCache
    ) -> Int[Array, "batch sets choosers top_k"]:
        """The blocks that a chunk of queries, before positions, reads."""
        return retrieve(query, cache, self.top_k, self.retrieval, rotate=self.turn)

    def read_chunk(
        self, features: Float[Array, "batch length width"], cache: LandmarkCache
    ) -> tuple[Float[Array, "batch length width"], LandmarkCache]:
        """The output of the next tokens of a text, from all of which blocks are retrieved, and the cache after them."""
        unturned = jnp.zeros(features.shape[1], int)
        query, key, value = self.project(features, unturned)
        chosen = self.choose(query, cache)
        read, cache = attend_chunk(
            query, key, value, cache, chosen, rotate=self.turn, implementation=self.implementation
        )
        return self.output(read.reshape(features.shape)), cache
