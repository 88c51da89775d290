"""A decoder of landmark attention that reads text of any length in chunks, retrieving blocks of what it has read."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jattn.mechanisms.landmark_retrieval import LandmarkAttention, LandmarkCache, Retrieval
from jattn.models.decoder import BuildAttention, Decoder

Caches = tuple[LandmarkCache, ...]
"""One for each layer."""


def landmark_layers(block: int, top_k: int, retrieval: Retrieval = "token_head") -> BuildAttention:
    """The same landmark attention in every layer, for a `DecoderConfig`."""

    def build(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> LandmarkAttention:
        return LandmarkAttention(width, heads, block, top_k, retrieval=retrieval, rngs=rngs)

    return build


def empty_caches(model: Decoder, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> Caches:
    """Before any text, with room for that many blocks in every layer.

    Raises:
      TypeError: a layer's attention is another.
    """
    return tuple(attention.empty_cache(batch, capacity, dtype) for attention in _attentions(model))


def read_chunk(
    model: Decoder, tokens: Int[Array, "batch length"], caches: Caches
) -> tuple[Float[Array, "batch length vocabulary"], Caches]:
    """Logits of what follows each of the next tokens and landmarks of a text, and the caches after them."""
    features, after = model.embedding(tokens), []
    for layer, cache in zip(model.blocks, caches, strict=True):
        read, cache = layer.attention.read_chunk(layer.attention_norm(features), cache)
        features = features + read
        features = features + layer.feed_forward(layer.feed_forward_norm(features))
        after.append(cache)
    return model.logits(model.norm(features)), tuple(after)


def read_in_chunks(
    model: Decoder, tokens: Int[Array, "batch length"], chunk: int
) -> Float[Array, "batch length vocabulary"]:
    """Logits of what follows each token of a whole text with landmarks, `chunk` tokens of which are read at a time.

    Raises:
      ValueError: chunk does not divide the length.
      TypeError: a layer's attention is not landmark attention.
    """
    batch, length = tokens.shape
    if chunk < 1 or length % chunk:
        raise ValueError(f"chunk must divide the {length} tokens; got {chunk}")
    # Room for every block, and for as many as a layer asks for.
    room = (max(length // (attention.block + 1), attention.top_k, 1) for attention in _attentions(model))
    caches = empty_caches(model, batch, max(room))

    def step(caches: Caches, tokens: Array) -> tuple[Caches, Array]:
        logits, caches = read_chunk(model, tokens, caches)
        return caches, logits

    cut = jnp.moveaxis(tokens.reshape(batch, -1, chunk), 1, 0)
    _, logits = jax.lax.scan(step, caches, cut)
    return jnp.moveaxis(logits, 0, 1).reshape(batch, length, -1)


def _attentions(model: Decoder) -> list[LandmarkAttention]:
    found = [layer.attention for layer in model.blocks]
    for attention in found:
        if not isinstance(attention, LandmarkAttention):
            raise TypeError(f"model must have landmark attention in every layer; got {type(attention)}")
    return found
