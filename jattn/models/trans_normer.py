"""TransNormerLLM: a language model of gated linear attention (Qin et al. 2023, arXiv 2307.14995; 2405.17381)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

import kernels
from jattn.layers.feed_forward import GatedLinearUnit
from jattn.layers.norms import simple_rms_norm
from jattn.mechanisms.lightning import GatedLinearAttention, decay_by_layer


@dataclass(frozen=True)
class TransNormerConfig:
    """Sizes of the model, and what its ablations leave out."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    """Width of the feed-forward layers."""
    decay: Callable[[int, int, int], Array] | None = decay_by_layer
    """Log decay of (heads, layer, layers), or None: nothing is forgotten."""
    positions: bool = True
    """Whether the first layer turns queries and keys by position."""
    activation: Callable[[Array], Array] | None = jax.nn.silu
    gate: bool = True


class TransNormerState(NamedTuple):
    """What decoding carries: as large after a million tokens as after one."""

    layers: tuple[kernels.LinearState, ...]
    position: Int[Array, ""]


class Block(nnx.Module):
    """x += attention(norm(x)); x += feed-forward(norm(x))."""

    def __init__(self, config: TransNormerConfig, layer: int, *, rngs: nnx.Rngs):
        decay = None if config.decay is None else config.decay(config.heads, layer, config.layers)
        self.attention = GatedLinearAttention(
            config.width,
            config.heads,
            log_decay=decay,
            positions=config.positions and layer == 0,
            activation=config.activation,
            gate=config.gate,
            rngs=rngs,
        )
        self.feed_forward = GatedLinearUnit(config.width, config.hidden, None, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "batch length width"],
        state: kernels.LinearState | None,
        positions: Int[Array, " length"],
        padding: Bool[Array, "batch length"] | None,
    ) -> tuple[Float[Array, "batch length width"], kernels.LinearState]:
        read, state = self.attention(simple_rms_norm(features), state, positions=positions, padding=padding)
        features = features + read
        return features + self.feed_forward(simple_rms_norm(features)), state


class TransNormer(nnx.Module):
    """Embedding, blocks, norm, and logits by a matrix of their own."""

    def __init__(self, config: TransNormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config, layer, rngs=rngs) for layer in range(config.layers)])
        self.logits = nnx.Linear(config.width, config.vocabulary, use_bias=False, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        state: TransNormerState | None = None,
        *,
        padding: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length vocabulary"], TransNormerState]:
        """Logits of what follows each token, and the state with which the next tokens go on.

        A prompt in one call and then token by token, each with the state of the call before, is one pass over all.

        Args:
          padding: true for tokens before the text begins, which count for nothing.
        """
        position = jnp.int32(0) if state is None else state.position
        before_each = [None] * self.config.layers if state is None else state.layers
        positions = position + jnp.arange(tokens.shape[1])
        features, layers = self.embedding(tokens), []
        for block, before in zip(self.blocks, before_each, strict=True):
            features, after = block(features, before, positions, padding)
            layers.append(after)
        logits = self.logits(simple_rms_norm(features))
        return logits, TransNormerState(tuple(layers), position + tokens.shape[1])
