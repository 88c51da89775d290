"""Text generated token by token with cached keys and values, in one compiled program."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jattn.layers.taps import handled, loop
from jattn.models.language_model import DecodingState, LanguageModel
from jattn.models.speech import SpeechDecoder, SpeechState

Model = LanguageModel | SpeechDecoder
State = DecodingState | SpeechState


class ReadPrompt(NamedTuple):
    """Prompts that have been read, but for their last tokens: texts go on from here as often as one likes.

    Attributes:
      last: the last token of each prompt.
      decoding: of the tokens before it, with room for what follows.
    """

    last: Int[Array, " batch"]
    decoding: State


class Generated(NamedTuple):
    """Tokens that follow each prompt, and how many there are of each: up to the first stop token, that among them.

    Behind them is padding.
    """

    tokens: Int[Array, "batch steps"]
    lengths: Int[Array, " batch"]


def generate(
    model: Model,
    prompt: Int[Array, "batch length"],
    steps: int,
    *,
    state: State | None = None,
    lengths: Int[Array, " batch"] | None = None,
    temperature: float | Float[Array, ""] = 0.0,
    key: Key[Array, ""] | None = None,
    stop: tuple[int, ...] = (),
    padding: int = 0,
) -> Generated:
    """Up to `steps` tokens that follow each prompt; fewer are computed once every text has stopped.

    Compiled anew for other shapes, steps and stop tokens, not for another temperature or other lengths. Where a handler
    of taps is present it is left to the caller to compile, as what was compiled before would not see the handler.

    Args:
      prompt: tokens, with padding behind them where prompts are of different lengths.
      state: what was read or heard before the prompt, with room for prompt and steps; None: nothing, which a language
        model alone can go on from.
      lengths: tokens of each prompt without padding; None: there is none.
      temperature: tokens are drawn from softmax(logits / temperature); of 0, the likeliest is taken.
      key: of the draws, needed unless the temperature is 0.
      stop: a text is over after any of these.
      padding: what follows a text that is over.

    Raises:
      ValueError: an argument does not fit; named.
    """
    _check(model, prompt, steps, lengths, temperature, key)
    draws = None if key is None else (key, jnp.float32(temperature))
    if state is None and not isinstance(model, LanguageModel):
        raise ValueError("state must be given to a decoder that listens; got None")
    graph, parameters = nnx.split(model)
    run = _generate if handled() else _compiled
    return run(graph, parameters, prompt, state, lengths, draws, steps=steps, stop=stop, padding=padding)


def read_prompt(
    model: LanguageModel, prompt: Int[Array, "batch length"], steps: int, lengths: Int[Array, " batch"] | None = None
) -> ReadPrompt:
    """Prompts read once, with room for that many more tokens. It is the caller who compiles.

    Args:
      prompt, lengths: see `generate`.

    Raises:
      ValueError: as `generate`.
    """
    _check(model, prompt, steps, lengths, 0.0, None)
    batch, length = prompt.shape
    return _read_on(
        model, model.empty_state(batch, length + steps, model.embedding.embedding[...].dtype), prompt, lengths
    )


def _read_on(model: Model, decoding: Any, prompt: Array, lengths: Array | None) -> ReadPrompt:
    batch, length = prompt.shape
    lengths = jnp.full(batch, length) if lengths is None else lengths
    if length > 1:  # the last is read when it is asked what follows it
        _, decoding = model.extend(prompt[:, :-1], decoding, lengths - 1)
    return ReadPrompt(jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0], decoding)


def continue_prompt(
    model: Model,
    read: ReadPrompt,
    steps: int,
    *,
    draws: tuple[Key[Array, ""], Float[Array, ""]] | None = None,
    stop: tuple[int, ...] = (),
    padding: int = 0,
) -> Generated:
    """Up to `steps` tokens that follow each prompt, for which there must be room. It is the caller who compiles.

    Sites of the model can be changed here, each token of the text by itself; they cannot be kept.

    Args:
      draws: key and temperature; None: the likeliest tokens are taken.
      stop, padding: see `generate`.
    """

    def choose(features: Array, step: Array) -> Array:
        logits = model.logits(features)[:, 0]
        if draws is None:
            return logits.argmax(axis=-1)
        key, temperature = draws
        drawn = jax.random.categorical(jax.random.fold_in(key, step), logits.astype(jnp.float32) / temperature)
        return jnp.where(temperature == 0, logits.argmax(axis=-1), drawn)

    class Carry(NamedTuple):
        step: Array
        last: Array
        generated: Generated
        over: Array
        decoding: Any

    def go_on(carry: Carry) -> Array:
        return (carry.step < steps) & ~carry.over.all()

    def next_token(carry: Carry) -> Carry:
        with loop():
            features, decoding = model.extend(carry.last[:, None], carry.decoding)
            token = jnp.where(carry.over, padding, choose(features, carry.step)).astype(carry.last.dtype)
        tokens = jax.lax.dynamic_update_index_in_dim(carry.generated.tokens, token, carry.step, 1)
        generated = Generated(tokens, carry.generated.lengths + ~carry.over)
        over = carry.over | jnp.isin(token, jnp.asarray(stop, token.dtype))
        return Carry(carry.step + 1, token, generated, over, decoding)

    batch = len(read.last)
    nothing = Generated(jnp.full((batch, steps), padding, read.last.dtype), jnp.zeros(batch, jnp.int32))
    begin = Carry(jnp.int32(0), read.last, nothing, jnp.zeros(batch, bool), read.decoding)
    return jax.lax.while_loop(go_on, next_token, begin).generated


def _generate(
    graph: Any,
    parameters: nnx.State,
    prompt: Array,
    state: State | None,
    lengths: Array | None,
    draws: tuple[Array, Array] | None,
    *,
    steps: int,
    stop: tuple[int, ...],
    padding: int,
) -> Generated:
    model = nnx.merge(graph, parameters)
    read = read_prompt(model, prompt, steps, lengths) if state is None else _read_on(model, state, prompt, lengths)
    return continue_prompt(model, read, steps, draws=draws, stop=stop, padding=padding)


_compiled = partial(jax.jit, static_argnames=("graph", "steps", "stop", "padding"))(_generate)


def _check(model: Model, prompt: Array, steps: int, lengths: Array | None, temperature: Any, key: Any) -> None:
    batch, length = prompt.shape
    if steps < 1 or length < 1:
        raise ValueError(f"steps and the prompt's length must be at least 1; got {steps} and {length}")
    most = model.config.positions
    if most is not None and length + steps > most:
        raise ValueError(f"prompt and steps must fit the model's {most} positions; got {length} and {steps}")
    if key is None and not (isinstance(temperature, (int, float)) and temperature == 0):
        raise ValueError(f"key must be given to draw tokens at temperature {temperature}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths must be of shape ({batch},); got {lengths.shape}")
