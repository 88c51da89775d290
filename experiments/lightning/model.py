"""The models that are trained: a softmax decoder, and TransNormer whole and with parts left out."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from experiments.lightning.config import Config
from jattn.models.decoder import Decoder, DecoderConfig
from jattn.models.trans_normer import TransNormer, TransNormerConfig
from jattn.train.language import bits_per_byte

LEFT_OUT: dict[str, dict[str, Any]] = {
    "lightning": {},
    "no_decay": {"decay": None},
    "no_gate": {"gate": False},
    "no_activation": {"activation": None},
}


def build(config: Config, arm: str, rngs: nnx.Rngs) -> Decoder | TransNormer:
    """The model of an arm."""
    if arm == "softmax":
        return Decoder(DecoderConfig(256, config.width, config.layers, config.heads, config.hidden), rngs=rngs)
    whole = TransNormerConfig(256, config.width, config.layers, config.heads, config.hidden - config.width // 3)
    return TransNormer(replace(whole, **LEFT_OUT[arm]), rngs=rngs)


def losses(model: Decoder | TransNormer, tokens: Int[Array, "batch length"]) -> Float[Array, "batch predicted"]:
    """-log p(byte | those before it) in nats, of every byte but the first."""
    logits = model(tokens[:, :-1]) if isinstance(model, Decoder) else model(tokens[:, :-1])[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def forgetting_at_once(model: TransNormer) -> nnx.State:
    """The model's state beside its parameters that makes every layer read nothing but the token itself: decay to 0."""
    for block in model.blocks:
        decay = block.attention.log_decay
        assert decay is not None
        decay[...] = jnp.full_like(decay[...], -100.0)
    return nnx.state(model, nnx.Not(nnx.Param))


def bits_without(arm: str, model: TransNormer, windows: Int[Array, "windows length"]) -> Float[Array, ""]:
    """Bits per byte of a whole model once it lacks what that arm never had."""
    ((name, value),) = LEFT_OUT[arm].items()
    for block in model.blocks:
        setattr(block.attention, "log_decay" if name == "decay" else name, value)
    return bits_per_byte(losses, model, windows)


def evaluate(model: Decoder | TransNormer, windows: Int[Array, "windows length"]) -> dict[str, Float[Array, ""]]:
    """Bits per byte on windows that are not trained on."""
    return {"bits": bits_per_byte(losses, model, windows)}
