"""The models: decoders of multi-head attention and of mixtures of heads, converted and damaged ones."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from experiments.mixture_of_heads.config import MULTI_HEAD, Config, Mixture
from jattn.interpret import Edit, Scale, capture, edit
from jattn.layers.auxiliary import auxiliary_losses
from jattn.layers.selection import top_k_mask
from jattn.mechanisms import CausalSelfAttention, MixtureOfHeadsAttention
from jattn.models.decoder import Decoder, DecoderConfig, next_token_losses
from jattn.models.vision_transformer import VisionTransformer
from jattn.train.language import bits_per_byte, language_loss


def build(config: Config, arm: str, rngs: nnx.Rngs) -> Decoder:
    """A decoder of bytes with the attention of that arm in every layer."""

    def attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> nnx.Module:
        if arm == MULTI_HEAD:
            return CausalSelfAttention(width, heads, rngs=rngs)
        mixture = config.mixtures[arm]
        return MixtureOfHeadsAttention(width, heads, shared=mixture.shared, top_k=mixture.top_k, rngs=rngs)

    sizes = DecoderConfig(256, config.width, config.layers, config.heads, config.hidden, attention)
    return Decoder(sizes, rngs=rngs)


def convert(model: Decoder, mixture: Mixture) -> Decoder:
    """The trained multi-head model with its own projections as a mixture, routed by the lengths of its queries."""
    for block in model.blocks:
        block.attention = MixtureOfHeadsAttention.from_multi_head(
            block.attention, shared=mixture.shared, top_k=mixture.top_k
        )
    return model


def without_random_heads(layers: int, keep: int, shape: tuple[int, int, int], key: Key[Array, ""]) -> list[Edit]:
    """Edits by which each token keeps that many heads of multi-head attention, drawn at random, with weight 1.

    Args:
      shape: batch, length and heads; every token of every layer draws its own.
    """
    edits = []
    for layer in range(layers):
        kept = top_k_mask(jax.random.uniform(jax.random.fold_in(key, layer), shape), keep)
        edits.append(edit(f"layers.{layer}.attention.head_output", Scale(kept[..., None])))
    return edits


def losses_without_heads(
    keep: int, key: Key[Array, ""], model: Decoder, tokens: Int[Array, "batch length"]
) -> Float[Array, "batch predicted"]:
    """Nats of the multi-head model with random heads left out, others in every window."""
    shape = (len(tokens), tokens.shape[1] - 1, model.blocks[0].attention.heads)
    edits = without_random_heads(len(model.blocks), keep, shape, jax.random.fold_in(key, tokens.sum()))
    return capture(partial(next_token_losses, model), tokens, edits=edits).output


def bits_without_heads(
    keep: int, model: Decoder, key: Key[Array, ""], windows: Int[Array, "windows length"]
) -> Float[Array, ""]:
    """Bits per byte of that."""
    return bits_per_byte(partial(losses_without_heads, keep, key), model, windows)


def loss(
    balance_weight: float, model: Decoder, windows: Int[Array, "batch length"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Nats per byte, and the balance loss where there is one."""
    nats, metrics = language_loss(next_token_losses, model, windows)
    return with_balance(nats, balance_weight, model, metrics)


def with_balance(
    task: Float[Array, ""], weight: float, model: Decoder | VisionTransformer, metrics: dict[str, Float[Array, ""]]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The task's loss plus the weighted balance loss of the last call, if there is one, which the metrics then have."""
    extra = auxiliary_losses(model)
    return task + weight * extra.get("balance", jnp.zeros(())), {**metrics, **extra}


bits = partial(bits_per_byte, next_token_losses)


def evaluate(windows: Int[Array, "windows length"], model: Decoder) -> dict[str, Float[Array, ""]]:
    """Bits per byte on windows that are not trained on."""
    return {"bits": bits(model, windows)}
