"""A plain decoder language model whose attention can be exchanged."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn.layers.block import Block
from jattn.layers.feed_forward import GatedLinearUnit
from jattn.layers.taps import scope, tap
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


def _block(config: DecoderConfig, layer: int, rngs: nnx.Rngs) -> Block:
    return Block(
        nnx.RMSNorm(config.width, rngs=rngs),
        config.attention(config.width, config.heads, layer, rngs),
        nnx.RMSNorm(config.width, rngs=rngs),
        GatedLinearUnit(config.width, config.hidden, rngs=rngs),
    )


class Decoder(nnx.Module):
    """Embedding, blocks, norm, and logits by a matrix of their own.

    Sites: embedding, layers.i.* (`Block`), residual (of the last block), norm, logits.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        self.blocks = nnx.List([_block(config, layer, rngs) for layer in range(config.layers)])
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
        features = tap("embedding", self.embedding(tokens))
        for layer, block in enumerate(self.blocks):
            with scope("layers", layer):
                features = block(features, partial(block.attention, positions=positions))
        return tap("logits", self.logits(tap("norm", self.norm(tap("residual", features)))))


def next_token_losses(model: Decoder, tokens: Int[Array, "batch length"]) -> Float[Array, "batch predicted"]:
    """-log p(token | those before it) in nats, of every token but the first."""
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:])
