"""Encoders of text: BERT (Devlin et al. 2019, arXiv 1810.04805), and sentences as vectors by them."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn.layers.feed_forward import FeedForward
from jattn.layers.taps import scope, tap
from jattn.mechanisms.full_attention import FullAttention
from jattn.settings import at_least
from kernels import masks


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder.

    Attributes:
      hidden: width inside feed-forward layers.
      positions: how many learned positions there are.
      kinds: of tokens, such as those of a first and those of a second text.
      implementation: of attention, as in `kernels.attention`.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int = 512
    kinds: int = 2
    norm_epsilon: float = 1e-12
    implementation: str | None = None

    def __post_init__(self) -> None:
        at_least(1, self, "vocabulary", "width", "layers", "heads", "hidden", "positions", "kinds")


def minilm_l6() -> EncoderConfig:
    """all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957, trained further on pairs of sentences)."""
    return EncoderConfig(30522, 384, 6, 12, 1536)


class PostNormBlock(nnx.Module):
    """x = norm(x + attention(x)); x = norm(x + feed-forward(x)).

    Sites: as `jattn.layers.block.Block`; middle is the features between, behind their norm.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        norm = partial(nnx.LayerNorm, config.width, epsilon=config.norm_epsilon, rngs=rngs)
        self.attention = FullAttention(
            config.width, config.heads, bias=True, implementation=config.implementation, rngs=rngs
        )
        self.attention_norm = norm()
        self.feed_forward = FeedForward(config.width, config.hidden, partial(jax.nn.gelu, approximate=False), rngs=rngs)
        self.feed_forward_norm = norm()

    def __call__(
        self, features: Float[Array, "batch length width"], mask: masks.Mask | None = None
    ) -> Float[Array, "batch length width"]:
        features = tap("residual", features)
        with scope("attention"):
            read = tap("output", self.attention(features, mask=mask))
        features = tap("middle", self.attention_norm(features + read))
        with scope("feed_forward"):
            made = tap("output", self.feed_forward(features))
        return self.feed_forward_norm(features + made)


class Encoder(nnx.Module):
    """Embeddings of tokens, positions and kinds, their norm, and blocks in which every token reads every other.

    Sites: embedding, layers.i.* (`PostNormBlock`), residual (of the last block).
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        self.positions = nnx.Embed(config.positions, config.width, rngs=rngs)
        self.kinds = nnx.Embed(config.kinds, config.width, rngs=rngs)
        self.norm = nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        self.blocks = nnx.List([PostNormBlock(config, rngs=rngs) for _ in range(config.layers)])

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"] | None = None,
        *,
        kinds: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Features of every token; what comes for padding means nothing.

        Args:
          lengths: tokens of each text, the rest being padding behind them, which nothing reads; None: there is none.
          kinds: of the tokens, 0 by default.

        Raises:
          ValueError: there are more tokens than positions.
        """
        length = tokens.shape[1]
        if length > self.config.positions:
            raise ValueError(f"tokens must fit the model's {self.config.positions} positions; got {length}")
        kinds = jnp.zeros_like(tokens) if kinds is None else kinds
        features = self.embedding(tokens) + self.positions(jnp.arange(length)) + self.kinds(kinds)
        features = tap("embedding", self.norm(features))
        mask = None if lengths is None else masks.Prefix(lengths)
        for layer, block in enumerate(self.blocks):
            with scope("layers", layer):
                features = block(features, mask)
        return tap("residual", features)

    def embed_sentences(
        self, tokens: Int[Array, "batch length"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch width"]:
        """Texts as vectors of length 1, the mean over their tokens (Reimers, Gurevych 2019, arXiv 1908.10084).

        The product of two says how alike the texts are, as far as the model was trained for it.
        """
        features = self(tokens, lengths)
        inside = jnp.arange(tokens.shape[1]) < lengths[:, None]
        summed = jnp.where(inside[..., None], features, 0).sum(axis=1, dtype=jnp.float32)
        return (summed / jnp.linalg.norm(summed, axis=-1, keepdims=True)).astype(features.dtype)
