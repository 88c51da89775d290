"""A plain decoder language model whose attention can be exchanged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn.layers.feed_forward import SwiGLU
from jattn.mechanisms.causal_self_attention import CausalSelfAttention

BuildAttention = Callable[[int, int, int, nnx.Rngs], Any]
"""(width, heads, layer, rngs) -> a module that maps features (batch, length, width) to as many, and takes `positions`.

A layer that has a loss of its own sets an `AuxiliaryLoss`; see `auxiliary_losses`.
"""


def causal_self_attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> CausalSelfAttention:
    """Full attention, the same in every layer."""
    return CausalSelfAttention(width, heads, rngs=rngs)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the model, and its attention."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    """Width of the feed-forward layers."""
    attention: BuildAttention = causal_self_attention


class DecoderBlock(nnx.Module):
    """x += attention(norm(x)); x += feed-forward(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.attention = config.attention(config.width, config.heads, layer, rngs)
        self.feed_forward_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.feed_forward = SwiGLU(config.width, config.hidden, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "batch length width"],
        positions: Int[Array, "#batch length"] | Int[Array, " length"] | None,
    ) -> Float[Array, "batch length width"]:
        features = features + self.attention(self.attention_norm(features), positions=positions)
        return features + self.feed_forward(self.feed_forward_norm(features))


class Decoder(nnx.Module):
    """Embedding, blocks, norm, and logits by a matrix of their own."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        self.blocks = nnx.List([DecoderBlock(config, layer, rngs=rngs) for layer in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.logits = nnx.Linear(config.width, config.vocabulary, use_bias=False, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        positions: Int[Array, "#batch length"] | Int[Array, " length"] | None = None,
    ) -> Float[Array, "batch length vocabulary"]:
        """Logits of what follows each token.

        Args:
          positions: of the tokens, from 0 by default.
        """
        features = self.embedding(tokens)
        for block in self.blocks:
            features = block(features, positions)
        return self.logits(self.norm(features))


def next_token_losses(model: Decoder, tokens: Int[Array, "batch length"]) -> Float[Array, "batch predicted"]:
    """-log p(token | those before it) in nats, of every token but the first."""
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:])
