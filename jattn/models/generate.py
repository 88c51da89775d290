"""Text generated: the prompt read at once, then token by token with cached keys and values, in one compiled program."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jattn.models.language_model import DecodingState, LanguageModel


class Generated(NamedTuple):
    """Tokens that follow each prompt, and how many there are of each: up to the first stop token, that among them.

    Behind them is padding.
    """

    tokens: Int[Array, "batch steps"]
    lengths: Int[Array, " batch"]


def generate(
    model: LanguageModel,
    prompt: Int[Array, "batch length"],
    steps: int,
    *,
    lengths: Int[Array, " batch"] | None = None,
    temperature: float | Float[Array, ""] = 0.0,
    key: Key[Array, ""] | None = None,
    stop: tuple[int, ...] = (),
    padding: int = 0,
) -> Generated:
    """Up to `steps` tokens that follow each prompt; fewer are computed once every text has stopped.

    Compiled anew for other shapes, steps and stop tokens, not for another temperature or other lengths.

    Args:
      prompt: tokens, with padding behind them where prompts are of different lengths.
      lengths: tokens of each prompt without padding; None: there is none.
      temperature: tokens are drawn from softmax(logits / temperature); of 0, the likeliest is taken.
      key: of the draws, needed unless the temperature is 0.
      stop: a text is over after any of these.
      padding: what follows a text that is over.

    Raises:
      ValueError: an argument does not fit; named.
    """
    batch, length = prompt.shape
    if steps < 1 or length < 1:
        raise ValueError(f"steps and the prompt's length must be at least 1; got {steps} and {length}")
    most = model.config.positions
    if most is not None and length + steps > most:
        raise ValueError(f"prompt and steps must fit the model's {most} positions; got {length} and {steps}")
    drawn = not isinstance(temperature, (int, float)) or temperature != 0
    if drawn and key is None:
        raise ValueError(f"key must be given to draw tokens at temperature {temperature}")
    if lengths is None:
        lengths = jnp.full(batch, length)
    elif lengths.shape != (batch,):
        raise ValueError(f"lengths must be of shape ({batch},); got {lengths.shape}")
    graph, state = nnx.split(model)
    draws = (key, jnp.float32(temperature)) if drawn else None
    return _generate(graph, state, prompt, jnp.int32(lengths), draws, steps=steps, stop=stop, padding=padding)


@partial(jax.jit, static_argnames=("graph", "steps", "stop", "padding"))
def _generate(
    graph: Any,
    state: nnx.State,
    prompt: Array,
    lengths: Array,
    draws: tuple[Array, Array] | None,
    *,
    steps: int,
    stop: tuple[int, ...],
    padding: int,
) -> Generated:
    model = nnx.merge(graph, state)
    batch, length = prompt.shape

    def choose(features: Array, step: Array | int) -> Array:
        logits = model.logits(features)[:, 0]
        if draws is None:
            return logits.argmax(axis=-1)
        key, temperature = draws
        drawn = jax.random.categorical(jax.random.fold_in(key, step), logits.astype(jnp.float32) / temperature)
        return jnp.where(temperature == 0, logits.argmax(axis=-1), drawn)

    def ends(token: Array) -> Array:
        return jnp.isin(token, jnp.asarray(stop, token.dtype)) if stop else jnp.zeros(batch, bool)

    class Carry(NamedTuple):
        step: Array
        tokens: Array
        lengths: Array
        over: Array
        decoding: DecodingState

    def go_on(carry: Carry) -> Array:
        return (carry.step < steps) & ~carry.over.all()

    def next_token(carry: Carry) -> Carry:
        last = jax.lax.dynamic_index_in_dim(carry.tokens, carry.step - 1, 1)
        features, decoding = model.extend(last, carry.decoding)
        token = jnp.where(carry.over, padding, choose(features, carry.step))
        tokens = jax.lax.dynamic_update_index_in_dim(carry.tokens, token, carry.step, 1)
        return Carry(carry.step + 1, tokens, carry.lengths + ~carry.over, carry.over | ends(token), decoding)

    empty = model.empty_state(batch, length + steps, model.embedding.embedding[...].dtype)
    features, decoding = model.extend(prompt, empty, lengths)
    first = choose(jnp.take_along_axis(features, lengths[:, None, None] - 1, axis=1), 0)
    tokens = jnp.full((batch, steps), padding, first.dtype).at[:, 0].set(first)
    begin = Carry(jnp.int32(1), tokens, jnp.ones(batch, jnp.int32), ends(first), decoding)
    end = jax.lax.while_loop(go_on, next_token, begin)
    return Generated(end.tokens, end.lengths)
