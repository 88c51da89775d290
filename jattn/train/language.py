"""What training a language model of bytes takes besides the loop: batches, loss, and bits per byte."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn.data.byte_windows import ByteText, sample_windows
from jattn.train.state import Generated

Losses = Callable[[Any, Int[Array, "batch length"]], Float[Array, "batch predicted"]]
"""(model, tokens) -> nats of every token but the first, as `jattn.models.decoder.next_token_losses`."""


def byte_batches(text: ByteText, length: int, batch: int) -> Generated:
    """Batches of windows of length + 1 bytes from anywhere in the text."""
    return Generated(partial(sample_windows, text.train, length, batch))


def language_loss(
    losses: Losses, model: Any, windows: Int[Array, "batch length"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Nats per token, and as a metric bits."""
    nats = losses(model, windows).mean()
    return nats, {"bits": nats / jnp.log(2)}


def over_windows(
    function: Callable[[Any, Int[Array, "1 length"]], Any], model: Any, windows: Int[Array, "windows length"]
) -> Any:
    """function(model, window), window by window, results stacked. What a call sets in the model is dropped."""
    graph, state = nnx.split(model)
    return jax.lax.map(lambda window: function(nnx.merge(graph, state, copy=True), window[None]), windows)


def bits_per_byte(losses: Losses, model: Any, windows: Int[Array, "windows length"]) -> Float[Array, ""]:
    """Mean of -log₂ p over the windows' predictions."""
    return over_windows(losses, model, windows).mean() / jnp.log(2)
