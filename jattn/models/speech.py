"""Speech to text: Whisper (Radford et al. 2022, arXiv 2212.04356), an encoder of sound and a decoder that listens."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jattn.layers.block import Block
from jattn.layers.feed_forward import FeedForward
from jattn.layers.taps import scope, tap
from jattn.mechanisms.causal_self_attention import CausalSelfAttention, KeyValueCache
from jattn.mechanisms.full_attention import FullAttention
from jattn.settings import at_least


@dataclass(frozen=True)
class SpeechConfig:
    """Sizes of a speech model.

    Attributes:
      hidden: width inside feed-forward layers.
      mels: bands of a spectrogram.
      frames: of sound after the encoder, which takes two of a spectrogram for each.
      positions: how many tokens a text has at most.
      implementation: of attention, as in `kernels.attention`.
    """

    vocabulary: int
    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    hidden: int
    mels: int = 80
    frames: int = 1500
    positions: int = 448
    implementation: str | None = None

    def __post_init__(self) -> None:
        at_least(
            1, self, "vocabulary", "width", "encoder_layers", "decoder_layers", "heads", "hidden", "mels", "frames",
        )  # fmt: skip


def whisper_tiny_en() -> SpeechConfig:
    """Whisper tiny, English alone."""
    return SpeechConfig(51864, 384, 4, 4, 6, 1536)


class SpeechEncoder(nnx.Module):
    """Two convolutions over time, positions, blocks in which every frame reads every other, and a norm.

    Sites: embedding, layers.i.* (`jattn.layers.block.Block`), residual (of the last block), norm.
    """

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.first = nnx.Conv(config.mels, config.width, (3,), padding=1, rngs=rngs)
        self.second = nnx.Conv(config.width, config.width, (3,), strides=2, padding=1, rngs=rngs)
        self.positions = nnx.Embed(config.frames, config.width, rngs=rngs)
        self.blocks = nnx.List([_block(config, rngs) for _ in range(config.encoder_layers)])
        self.norm = _norm(config, rngs)

    def __call__(self, mel: Float[Array, "batch double_frames mels"]) -> Float[Array, "batch frames width"]:
        """What is heard in a log-mel spectrogram (`jattn.data.log_mel`).

        Raises:
          ValueError: it has not two frames for each position.
        """
        if mel.shape[1:] != (2 * self.config.frames, self.config.mels):
            raise ValueError(
                f"mel must have {2 * self.config.frames} frames of {self.config.mels} bands; got shape {mel.shape}"
            )
        features = _gelu(self.second(_gelu(self.first(mel))))
        features = tap("embedding", features + self.positions(jnp.arange(self.config.frames)))
        for layer, block in enumerate(self.blocks):
            with scope("layers", layer):
                features = block(features)
        return tap("norm", self.norm(tap("residual", features)))


class ListeningBlock(nnx.Module):
    """x += attention(norm(x)); x += cross-attention(norm(x), what is heard); x += feed-forward(norm(x)).

    Sites: as `jattn.layers.block.Block`, where middle is the features before the feed-forward layer; and
    before_listening (the features there), cross_attention.output and the other sites of attention in cross_attention.
    """

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs)
        self.attention = CausalSelfAttention(
            config.width, config.heads, base=None, bias=True, implementation=config.implementation, rngs=rngs
        )
        self.cross_attention_norm = _norm(config, rngs)
        self.cross_attention = _attention(config, rngs)
        self.feed_forward_norm = _norm(config, rngs)
        self.feed_forward = FeedForward(config.width, config.hidden, _gelu, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "batch length width"],
        heard: tuple[Float[Array, "batch frames heads head_dim"], Float[Array, "batch frames heads head_dim"]],
        cache: KeyValueCache,
        lengths: Int[Array, " batch"],
    ) -> tuple[Float[Array, "batch length width"], KeyValueCache]:
        """The features after the block, and the cache with the new tokens.

        Args:
          heard: keys and values of cross-attention.
          cache, lengths: what the text's attention read before, as in `CausalSelfAttention.extend`.
        """
        features = tap("residual", features)
        with scope("attention"):
            read, cache = self.attention.extend(self.attention_norm(features), cache, lengths)
            read = tap("output", read)
        features = tap("before_listening", features + read)
        with scope("cross_attention"):
            read = tap("output", self.cross_attention.attend(self.cross_attention_norm(features), *heard))
        features = tap("middle", features + read)
        with scope("feed_forward"):
            made = tap("output", self.feed_forward(self.feed_forward_norm(features)))
        return features + made, cache


class SpeechState(NamedTuple):
    """What decoding carries: of each layer keys and values of the text and of what is heard; tokens of each text."""

    layers: tuple[KeyValueCache, ...]
    heard: tuple[tuple[Array, Array], ...]
    lengths: Int[Array, " batch"]


class SpeechDecoder(nnx.Module):
    """Embeddings of tokens and positions, blocks that listen, a norm, and logits by the embedding.

    `jattn.models.generate.generate` goes on with a text from a state in which something is heard.
    Sites: embedding, layers.i.* (`ListeningBlock`), residual (of the last block), norm, logits.
    """

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        self.positions = nnx.Embed(config.positions, config.width, rngs=rngs)
        self.blocks = nnx.List([ListeningBlock(config, rngs=rngs) for _ in range(config.decoder_layers)])
        self.norm = _norm(config, rngs)

    def begin(
        self, heard: Float[Array, "batch frames width"], capacity: int, dtype: DTypeLike = jnp.float32
    ) -> SpeechState:
        """Before any text, with room for that many tokens of each."""
        layers, parts = [], []
        for layer, block in enumerate(self.blocks):
            layers.append(block.attention.empty_cache(len(heard), capacity, dtype))
            with scope("layers", layer, "cross_attention"):
                parts.append(block.cross_attention.keys_and_values(heard))
        return SpeechState(tuple(layers), tuple(parts), jnp.zeros(len(heard), jnp.int32))

    def extend(
        self, tokens: Int[Array, "batch length"], state: SpeechState, counts: Int[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch length width"], SpeechState]:
        """Features of the last block for the next tokens of each text, and the state after them.

        The state must have room for all tokens, padding with them: what does not fit goes to wrong places.

        Args:
          counts: how many of the tokens are of each text; those behind are padding, and are forgotten. None: all.
        """
        places = state.lengths[:, None] + jnp.arange(tokens.shape[1])
        features, layers = tap("embedding", self.embedding(tokens) + self.positions(places)), []
        for layer, (block, cache, heard) in enumerate(zip(self.blocks, state.layers, state.heard, strict=True)):
            with scope("layers", layer):
                features, after = block(features, heard, cache, state.lengths)
            layers.append(after)
        lengths = state.lengths + (tokens.shape[1] if counts is None else counts)
        return tap("residual", features), SpeechState(tuple(layers), state.heard, lengths)

    def logits(self, features: Float[Array, "batch length width"]) -> Float[Array, "batch length vocabulary"]:
        """Of features as the last block gives them."""
        return tap("logits", self.embedding.attend(tap("norm", self.norm(features))))


class SpeechModel(nnx.Module):
    """Encoder and decoder. Sites: encoder.* (`SpeechEncoder`), decoder.* (`SpeechDecoder`)."""

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = SpeechEncoder(config, rngs=rngs)
        self.decoder = SpeechDecoder(config, rngs=rngs)

    def __call__(
        self, mel: Float[Array, "batch double_frames mels"], tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch length vocabulary"]:
        """Logits of what follows each token."""
        state = self.listen(mel, tokens.shape[1])
        with scope("decoder"):
            features, _ = self.decoder.extend(tokens, state)
            return self.decoder.logits(features)

    def listen(self, mel: Float[Array, "batch double_frames mels"], capacity: int) -> SpeechState:
        """The state from which a text of at most so many tokens is written."""
        with scope("encoder"):
            heard = self.encoder(mel)
        with scope("decoder"):
            return self.decoder.begin(heard, capacity, heard.dtype)


_gelu = partial(jax.nn.gelu, approximate=False)


def _norm(config: SpeechConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)


def _attention(config: SpeechConfig, rngs: nnx.Rngs) -> FullAttention:
    return FullAttention(config.width, config.heads, bias=True, implementation=config.implementation, rngs=rngs)


def _block(config: SpeechConfig, rngs: nnx.Rngs) -> Block:
    feed_forward = FeedForward(config.width, config.hidden, _gelu, rngs=rngs)
    return Block(_norm(config, rngs), _attention(config, rngs), _norm(config, rngs), feed_forward)
