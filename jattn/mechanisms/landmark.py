"""Landmark attention: a token behind each block whose key says how much of the block is read.

Mohtashami and Jaggi 2023, arXiv 2305.16300. A sequence has one landmark behind every `block` ordinary tokens; its last
block may be unfinished. A token reads the tokens of its own block and beside them, as if they were tokens, landmarks of
earlier blocks; what such a landmark is given is shared among the tokens of its block, by a softmax of their own.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

import kernels
from kernels.masks import Causal, Lengths

DENSE_LENGTH = 512
"""Up to so many tokens all scores are made at once: on a CPU a gradient of 271 tokens takes 0.4 of the time."""
QUERIES_ON_CPU, QUERIES = 256, 8192
"""At most how many are gone through together: on a CPU so many as its cache holds, elsewhere as keep it busy."""


def is_landmark(length: int, block: int) -> Bool[Array, " length"]:
    """Where landmarks stand: behind every `block` ordinary tokens.

    Raises:
      ValueError: block is below 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1; got {block}")
    return jnp.arange(length) % (block + 1) == block


def insert_landmarks(tokens: Int[Array, "*batch length"], block: int, landmark_id: int) -> Int[Array, "*batch longer"]:
    """The tokens with a landmark behind every `block` of them; length + length // block.

    Raises:
      ValueError: block is below 1.
    """
    length = tokens.shape[-1]
    longer = length + length // block if block > 0 else 0
    ordinary = ~is_landmark(longer, block)
    found = tokens[..., jnp.minimum(jnp.cumsum(ordinary) - 1, length - 1)]
    return jnp.where(ordinary, found, jnp.asarray(landmark_id, tokens.dtype))


def strip_landmarks(tokens: Shaped[Array, "*batch length"], block: int) -> Shaped[Array, "*batch shorter"]:
    """What `insert_landmarks` was given; of other arrays along the sequence, what stands at ordinary tokens.

    Raises:
      ValueError: block is below 1.
    """
    length = tokens.shape[-1]
    if block < 1:
        raise ValueError(f"block must be at least 1; got {block}")
    places = jnp.arange(length - length // (block + 1))
    return tokens[..., places + places // block]


def target_mask(length: int, block: int) -> Bool[Array, " predicted"]:
    """Of a sequence with landmarks, which tokens but the first are to be predicted: a landmark never is."""
    return ~is_landmark(length, block)[1:]


def grouped_softmax(
    scores: Float[Array, "... keys"], groups: Int[Array, "... keys"], number: int
) -> Float[Array, "... keys"]:
    """exp(v_x) / Σ exp(v_y) over the y of x's group, row by row; groups 0 to number - 1, and 0 for any other.

    A score of -inf gives 0 (section 3.1 of the paper).
    """

    def row(scores: Float[Array, " keys"], groups: Int[Array, " keys"]) -> Float[Array, " keys"]:
        inside = (groups >= 0) & (groups < number) & (scores > -jnp.inf)
        groups = jnp.clip(groups, 0, number - 1)
        highest = jax.ops.segment_max(lax.stop_gradient(jnp.where(inside, scores, -jnp.inf)), groups, number)
        powers = jnp.where(inside, jnp.exp(jnp.where(inside, scores - highest[groups], 0)), 0)
        return powers / jnp.where(inside, jax.ops.segment_sum(powers, groups, number)[groups], 1)

    for _ in range(scores.ndim - 1):
        row = jax.vmap(row)
    return row(scores, jnp.broadcast_to(groups, scores.shape))


def grouped_softmax_weights(
    scores: Float[Array, "... length length"], landmarks: Bool[Array, " length"]
) -> Float[Array, "... length length"]:
    """The weights of landmark attention from all scores, by the paper's definition (section 3.1): quadratic.

    Args:
      scores: scale · query keyᵀ.
      landmarks: which tokens are landmarks (`is_landmark`).

    Returns:
      A_ij: how much of token j's value token i reads. Rows sum to 1, landmarks are not read, nor are later tokens.
    """
    length = len(landmarks)
    i, j = jnp.arange(length)[:, None], jnp.arange(length)[None]
    # The landmark that closes each token's block; a number that is no token's where the last block is unfinished.
    closing = lax.cummin(jnp.where(landmarks, jnp.arange(length), length), reverse=True)
    own = closing[:, None]
    groups = jnp.where(landmarks[None], own, closing[None])
    groups = jnp.where(j == own, -1, groups)
    shares = grouped_softmax(jnp.where(j <= i, scores, -jnp.inf), groups, length + 1)
    gates = shares[..., jnp.minimum(closing, length - 1)]
    weights = jnp.where(closing[None] == own, shares, shares * gates)
    return jnp.where(landmarks[None], 0, weights)


def landmark_attention(
    query: Float[Array, "*batch length heads width"],
    key: Float[Array, "*batch length kv_heads width"],
    value: Float[Array, "*batch length kv_heads value_width"],
    block: int,
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "*batch length heads value_width"]:
    """Causal attention with the weights of `grouped_softmax_weights`, in memory linear in length.

    So are its derivatives, of any order. Up to `DENSE_LENGTH` tokens all scores are made at once, unless an
    implementation is asked for. Query head h reads key head h // (heads / kv_heads).

    Args:
      block: ordinary tokens between landmarks.
      scale: factor on query keyᵀ, width ** -0.5 by default.
      implementation: of `kernels.attention`.

    Raises:
      ValueError: block is below 1, or arrays do not fit; named.
    """
    return grouped_attention(query, key, value, block, scale=scale, implementation=implementation)[0]


def grouped_attention(
    query: Float[Array, "*batch length heads width"],
    key: Float[Array, "*batch length kv_heads width"],
    value: Float[Array, "*batch length kv_heads value_width"],
    block: int,
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch length heads value_width"], Float[Array, "*batch heads length"]]:
    """`landmark_attention`, and the log-sum-exp of what each token's own group holds: own tokens, earlier landmarks.

    By it further blocks can be merged in, each with its landmark's score for its log-sum-exp (`kernels.merge`).
    """
    if block < 1:
        raise ValueError(f"block must be at least 1; got {block}")
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise ValueError(
            f"query, key and value must agree in batch and length; got {query.shape}, {key.shape} and {value.shape}"
        )
    length = query.shape[-3]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if implementation is None and length <= DENSE_LENGTH:
        return _at_once(query, key, value, block, factor)
    blocks = -(-length // (block + 1))
    queries, keys, values = (_in_blocks(each, blocks, block + 1) for each in (query, key, value))
    ordinary, read, landmarks = keys[..., :block, :, :], values[..., :block, :, :], keys[..., block, :, :]
    output, found = kernels.attention(
        queries, ordinary, read, mask=Causal("start"), scale=factor, statistics=("lse",), implementation=implementation
    )
    own, own_lse = (_in_order(each, length) for each in (output, jnp.moveaxis(found.lse, -1, -2)[..., None]))
    wide = own_lse.dtype
    axis = len(query.shape) - 3
    # Every block that has tokens behind it, first axis; and where those begin.
    earlier = [jnp.moveaxis(each, axis, 0)[:-1] for each in (ordinary, read)]
    begins = (block + 1) * jnp.arange(1, blocks)

    @jax.checkpoint
    def of_tile(tile: tuple[Array, ...]) -> tuple[Array, Array]:
        query, own, own_lse, first = tile
        rows = query.shape[-3]
        scores = landmark_scores(query, landmarks[..., :-1, :, :], factor)
        at = first + jnp.arange(rows)
        scores = jnp.where(at[:, None, None] >= begins, scores, -jnp.inf)
        highest = lax.stop_gradient(jnp.maximum(own_lse, scores.max(axis=-1, initial=-jnp.inf, keepdims=True)))
        shares, share = jnp.exp(scores - highest), jnp.exp(own_lse - highest)

        @jax.checkpoint
        def part(share: Array, key: Array, value: Array, begin: Array) -> Array:
            mask = ~Lengths(queries=begin - first)
            read = kernels.attention(query, key, value, mask=mask, scale=factor, implementation=implementation)
            return share[..., None] * read.astype(wide)

        def add(total: Array, block: tuple[Array, ...]) -> tuple[Array, None]:
            behind = block[-1] < first + rows
            return lax.cond(behind, lambda: total + part(*block), lambda: total), None

        # Parts are added up, not merged one by one: of a sum, reverse mode has to keep nothing.
        total, _ = lax.scan(add, share * own.astype(wide), (jnp.moveaxis(shares, -1, 0), *earlier, begins))
        sum_ = share + shares.sum(axis=-1, keepdims=True)
        return (total / sum_).astype(query.dtype), highest + jnp.log(sum_)

    def in_tiles(queries: int, *of_query: Array) -> tuple[Array, Array]:
        tiles = -(-length // queries)
        rows = -(-length // tiles)
        tiled = [jnp.moveaxis(_in_blocks(each, tiles, rows), axis, 0) for each in of_query]
        made = lax.map(of_tile, (*tiled, rows * jnp.arange(tiles)))
        output, lse = (_in_order(jnp.moveaxis(each, 0, axis), length) for each in made)
        return output, jnp.moveaxis(lse[..., 0], -1, -2)

    return lax.platform_dependent(
        query, own, own_lse, cpu=partial(in_tiles, QUERIES_ON_CPU), default=partial(in_tiles, QUERIES)
    )


def _at_once(
    query: Float[Array, "*batch length heads width"],
    key: Float[Array, "*batch length kv_heads width"],
    value: Float[Array, "*batch length kv_heads value_width"],
    block: int,
    scale: float,
) -> tuple[Float[Array, "*batch length heads value_width"], Float[Array, "*batch heads length"]]:
    """`grouped_attention` with scores of all tokens by all tokens, block by block along the keys."""
    length, heads = query.shape[-3:-1]
    size, number = block + 1, -(-length // (block + 1))
    keys, values = (_in_blocks(each, number, size) for each in (key, value))
    scores = landmark_scores(query, keys.reshape(*key.shape[:-3], number * size, *key.shape[-2:]), scale)
    scores = jnp.moveaxis(scores, -2, -3).reshape(*query.shape[:-3], heads, length, number, size)
    token, which = jnp.arange(length)[:, None], jnp.arange(number)
    # A number that is finite, so that what is not read has a derivative, of 0.
    least = jnp.finfo(scores.dtype).min
    ordinary = jnp.where(token[..., None] >= size * which[:, None] + jnp.arange(block), scores[..., :block], least)
    highest = lax.stop_gradient(ordinary.max(axis=-1))
    powers = jnp.exp(ordinary - highest[..., None])
    total = powers.sum(axis=-1)
    own = token // size
    group = jnp.where(which < own, scores[..., block], jnp.where(which == own, highest + jnp.log(total), -jnp.inf))
    weights = powers * (jax.nn.softmax(group, axis=-1) / total)[..., None]
    grouped = weights.reshape(*query.shape[:-3], key.shape[-2], -1, *weights.shape[-3:])
    read = jnp.einsum(
        "...kgnbt,...btkw->...nkgw", grouped, values[..., :block, :, :].astype(grouped.dtype),
        precision=lax.Precision.HIGHEST,
    )  # fmt: skip
    output = read.reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype)
    return output, jax.nn.logsumexp(group, axis=-1)


def landmark_scores(
    query: Float[Array, "*batch length heads width"],
    landmarks: Float[Array, "*batch landmarks kv_heads width"],
    scale: float,
) -> Float[Array, "*batch length heads landmarks"]:
    """scale · query keyᵀ for keys of landmarks, float32 or wider."""
    *batch, length, heads, width = query.shape
    kv_heads = landmarks.shape[-2]
    grouped = query.reshape(*batch, length, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum(
        "...nkgw,...bkw->...nkgb", grouped, landmarks, precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )  # fmt: skip
    return scale * scores.reshape(*batch, length, heads, -1)


def _in_blocks(tokens: Array, blocks: int, size: int) -> Array:
    """(*batch, length, heads, width) as (*batch, blocks, size, heads, width), zeros behind the end."""
    *batch, length, heads, width = tokens.shape
    behind = [(0, 0)] * len(batch) + [(0, blocks * size - length), (0, 0), (0, 0)]
    return jnp.pad(tokens, behind).reshape(*batch, blocks, size, heads, width)


def _in_order(blocks: Array, length: int) -> Array:
    """(*batch, blocks, size, heads, width) as (*batch, length, heads, width): `_in_blocks` undone."""
    *batch, _, _, heads, width = blocks.shape
    return blocks.reshape(*batch, -1, heads, width)[..., :length, :, :]
