"""The models, and their losses of bytes: at once and in chunks."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

import kernels
from experiments.landmark.config import LANDMARK, Config
from jattn.mechanisms import CausalSelfAttention, LandmarkAttention, LandmarkCache, insert_landmarks, strip_landmarks
from jattn.models.decoder import BuildAttention, Decoder, DecoderConfig, next_token_losses
from jattn.models.landmark_decoder import read_in_chunks
from jattn.train.language import Losses, over_windows

LANDMARK_ID = 256
BY_LANDMARKS, NONE = -2, -1
"""Ways to choose blocks; a number from 0 on draws them."""


class WindowAttention(CausalSelfAttention):
    """Plain attention to the latest tokens only."""

    span: int = 1

    def attend(
        self,
        query: Float[Array, "batch length heads head_dim"],
        key: Float[Array, "batch length kv_heads head_dim"],
        value: Float[Array, "batch length kv_heads head_dim"],
    ) -> Float[Array, "batch length heads head_dim"]:
        return kernels.attention(query, key, value, mask=kernels.masks.Window(self.span - 1, 0, "start"))


class ExchangedBlocks(LandmarkAttention):
    """Landmark attention that reads other blocks than its landmarks choose, as an array says: all ways are one program.

    Attributes:
      way: BY_LANDMARKS, NONE, or from 0 on finished blocks at random, others for every token, head and chunk.
    """

    way: Int[Array, ""] | int = 0

    def choose(
        self, query: Float[Array, "batch length heads head_dim"], cache: LandmarkCache
    ) -> Int[Array, "batch length heads top_k"]:
        capacity = cache.key.shape[1]

        def by_landmarks() -> Array:
            return super(ExchangedBlocks, self).choose(query, cache)

        def none() -> Array:
            return jnp.full((*query.shape[:3], self.top_k), capacity)

        def at_random() -> Array:
            key = jax.random.fold_in(jax.random.key(self.way), cache.count)
            drawn = jax.random.uniform(key, (*query.shape[:3], capacity))
            drawn = jnp.where(jnp.arange(capacity) < cache.count, drawn, -1)
            return jnp.sort(jax.lax.top_k(drawn, self.top_k)[1], axis=-1)

        return jax.lax.switch(jnp.minimum(self.way, 0) - BY_LANDMARKS, [by_landmarks, none, at_random])


def build(config: Config, arm: str, rngs: nnx.Rngs) -> Decoder:
    """A decoder of bytes with the attention of that arm in every layer."""

    def attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> nnx.Module:
        if arm == LANDMARK:
            return LandmarkAttention(width, heads, config.block, max(config.top_k), rngs=rngs)
        return CausalSelfAttention(width, heads, rngs=rngs)

    return _decoder(config, attention, rngs)


def retrieving(config: Config, model: Decoder, top_k: int, way: Int[Array, ""] | int) -> Decoder:
    """The trained landmark model with another number of blocks to read, chosen in a way of `ExchangedBlocks`."""

    def attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> nnx.Module:
        return ExchangedBlocks(width, heads, config.block, top_k, rngs=rngs)

    exchanged = _with_parameters(nnx.eval_shape(lambda: _decoder(config, attention, nnx.Rngs(0))), model)
    for layer, block in enumerate(exchanged.blocks):
        block.attention.way = jnp.where(way < 0, way, way + layer)
    return exchanged


def windowed(config: Config, model: Decoder) -> Decoder:
    """The trained plain model, each token of which reads as many tokens as one of a landmark chunk at most."""

    def attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> nnx.Module:
        window = WindowAttention(width, heads, rngs=rngs)
        window.span = config.span
        return window

    return _with_parameters(nnx.eval_shape(lambda: _decoder(config, attention, nnx.Rngs(0))), model)


def _decoder(config: Config, attention: BuildAttention, rngs: nnx.Rngs) -> Decoder:
    sizes = DecoderConfig(LANDMARK_ID + 1, config.width, config.layers, config.heads, config.hidden, attention)
    return Decoder(sizes, rngs=rngs)


def _with_parameters(model: Decoder, of: Decoder) -> Decoder:
    nnx.update(model, nnx.state(of, nnx.Param))
    return model


def landmark_losses(block: int, model: Decoder, windows: Int[Array, "batch length"]) -> Float[Array, "batch predicted"]:
    """Nats of every byte but the first, read at once with landmarks between; a landmark is not predicted."""
    tokens = insert_landmarks(windows, block, LANDMARK_ID)
    return _of_bytes(_nats(model(tokens[:, :-1]), tokens), block)


def chunked_losses(
    block: int, chunk: int, model: Decoder, windows: Int[Array, "batch length"]
) -> tuple[Float[Array, "batch predicted"], Bool[Array, "batch predicted"]]:
    """The same, read in chunks: what is past is retrieved. And whether no token was likelier."""
    tokens = insert_landmarks(windows, block, LANDMARK_ID)
    read = tokens.shape[1] - 1
    # What fills up the last chunk comes behind all that is predicted.
    filled = jnp.pad(tokens[:, :-1], [(0, 0), (0, -read % chunk)])
    logits = read_in_chunks(model, filled, chunk)[:, :read]
    return _of_bytes(_nats(logits, tokens), block), _of_bytes(logits.argmax(axis=-1) == tokens[:, 1:], block)


def _nats(
    logits: Float[Array, "batch predicted vocabulary"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch predicted"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def _of_bytes(each: Shaped[Array, "batch read"], block: int) -> Shaped[Array, "batch predicted"]:
    """Of every token and landmark but the first, those of bytes, as landmarks are stripped from tokens."""
    return strip_landmarks(jnp.pad(each, [(0, 0), (1, 0)]), block)[:, 1:]


def losses_of(config: Config, arm: str) -> Losses:
    """Nats of bytes as the arm is trained."""
    return partial(landmark_losses, config.block) if arm == LANDMARK else next_token_losses


def bits_by_place(
    losses: Losses, change: Callable[[Decoder], Decoder], model: Decoder, windows: Int[Array, "windows length"]
) -> Float[Array, " predicted"]:
    """Mean of -log₂ p over windows, for each place in a window, of the changed model."""
    return over_windows(losses, change(model), windows).mean(axis=(0, 1)) / jnp.log(2)
