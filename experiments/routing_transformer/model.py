"""The models that are trained: one decoder, with local, clustered or full attention."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from experiments.routing_transformer.config import Config
from jattn.layers.auxiliary import auxiliary_losses
from jattn.mechanisms import CausalSelfAttention, LocalAttention, RoutingAttention
from jattn.models.decoder import Decoder, DecoderConfig, next_token_losses
from jattn.train.language import bits_per_byte, language_loss


class ClusteredAttention(RoutingAttention):
    """Routing attention, whose clusters can be made random: of the same sizes, each token in one, by position alone.

    Attributes:
      random: a head's clusters are one random partition of positions, always the same; in the causal form, each
        position is in one at random.
    """

    def __init__(self, config: Config, width: int, heads: int, layer: int, *, random: bool, rngs: nnx.Rngs):
        super().__init__(
            width,
            heads,
            local_heads=config.local_heads,
            clusters=config.clusters,
            window=config.window,
            block=config.block,
            look_back=config.look_back,
            decay=config.decay,
            exclude_self=config.exclude_self,
            causal_routing=config.causal_routing,
            rngs=rngs,
        )
        self.layer, self.random = layer, random

    def lists(
        self, vectors: Float[Array, "batch length routing_heads head_dim"]
    ) -> Int[Array, "batch routing_heads clusters window"]:
        """By affinity or at random."""
        if not self.random:
            return super().lists(vectors)
        batch, length, heads, _ = vectors.shape
        drawn = random_lists(self.layer, heads, self.clusters, min(self.window, length), length)
        return jnp.broadcast_to(drawn, (batch, *drawn.shape))

    def members(
        self, vectors: Float[Array, "batch length routing_heads head_dim"]
    ) -> Int[Array, "batch routing_heads length"]:
        """By affinity or at random."""
        if not self.random:
            return super().members(vectors)
        batch, length, heads, _ = vectors.shape
        drawn = np.random.default_rng(self.layer).integers(self.clusters, size=(heads, length))
        return jnp.broadcast_to(drawn.astype(np.int32), (batch, heads, length))


def random_lists(
    seed: int, heads: int, clusters: int, window: int, length: int
) -> Int[np.ndarray, "heads clusters window"]:
    """Clusters of a random order of all tokens, cut one after another, beginning anew where it ends."""
    order = np.random.default_rng(seed).random((heads, length)).argsort(axis=-1)
    taken = order[:, np.arange(clusters * window) % length].reshape(heads, clusters, window)
    return np.sort(taken, axis=-1)


def build(config: Config, arm: str, rngs: nnx.Rngs) -> Decoder:
    """The decoder of an arm. All have as many parameters, except that clustered heads have no keys of their own."""

    def attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> Any:
        if arm == "full":
            return CausalSelfAttention(width, heads, rngs=rngs)
        if arm == "local" or layer < config.layers - config.routing_layers:
            return LocalAttention(width, heads, block=config.block, look_back=config.look_back, rngs=rngs)
        return ClusteredAttention(config, width, heads, layer, random=arm == "random", rngs=rngs)

    return Decoder(DecoderConfig(256, config.width, config.layers, config.heads, config.hidden, attention), rngs=rngs)


def loss(
    commitment: float, model: Decoder, windows: Int[Array, "batch length"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Nats per byte and the commitment loss; centroids follow."""
    model.set_attributes(update_centroids=True, raise_if_not_found=False)
    nats, metrics = language_loss(next_token_losses, model, windows)
    others = auxiliary_losses(model)
    return nats + commitment * sum(others.values(), jnp.zeros(())), {**metrics, **others}


bits = partial(bits_per_byte, next_token_losses)


def evaluate(windows: Int[Array, "windows length"], model: Decoder) -> dict[str, Float[Array, ""]]:
    """Bits per byte on windows that are not trained on."""
    return {"bits": bits(model, windows)}
