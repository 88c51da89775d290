"""Pass keys: a note with a number is put into text, and far behind it the number is asked for.

Section 4.3 of the paper. The landmark model of the first part is tuned on windows with a note and a question in real
text. Then longer windows of other documents are read in chunks; all that is left of the note then is what is cached.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

from experiments.landmark.config import LANDMARK, Config
from experiments.landmark.model import build, landmark_losses
from jattn.data.byte_windows import sample_windows
from jattn.models.decoder import Decoder
from jattn.runs import Run
from jattn.train import Fitted, Generated, fit

DIGITS = 5
BEFORE, BETWEEN, AFTER = b" The pass key is ", b". Remember it. ", b" is the pass key. "
QUESTION = b" What is the pass key? The pass key is "
NOTE_LENGTH = len(BEFORE) + DIGITS + len(BETWEEN) + DIGITS + len(AFTER)
AGAIN = len(BEFORE) + DIGITS + len(BETWEEN)
"""Where in the note the key stands for the second time: from there on it can be predicted."""
TAIL_LENGTH = len(QUESTION) + DIGITS


def with_pass_key(
    windows: Int[Array, "batch length"], keys: Int[Array, "batch digits"], starts: Int[Array, " batch"]
) -> Int[Array, "batch length"]:
    """The windows with a note of the key written over them from `starts` on, at the end the question and its answer.

    Args:
      keys: digits, 0 to 9.
    """

    def one(window: Array, key: Array, start: Array) -> Array:
        digits = key + ord("0")
        note = jnp.concatenate([_of(BEFORE), digits, _of(BETWEEN), digits, _of(AFTER)])
        tail = jnp.concatenate([_of(QUESTION), digits])
        return lax.dynamic_update_slice(window, note, (start,)).at[-len(tail) :].set(tail)

    return jax.vmap(one)(windows, keys, starts)


def _of(text: bytes) -> Int[Array, " bytes"]:
    return jnp.asarray(np.frombuffer(text, np.uint8), jnp.int32)


def last_start(length: int) -> int:
    """The last place of a note in a window of length + 1 bytes, right before the question.

    Raises:
      ValueError: there is no room for a note and a question.
    """
    last = length + 1 - TAIL_LENGTH - NOTE_LENGTH
    if last < 0:
        raise ValueError(f"length must be at least {NOTE_LENGTH + TAIL_LENGTH - 1} for a pass key; got {length}")
    return last


def sample(
    text: UInt8[Array, " bytes"], length: int, batch: int, key: Key[Array, ""]
) -> tuple[Int[Array, "{batch} {length}+1"], Int[Array, " {batch}"]]:
    """Windows from anywhere in the text with notes anywhere before the question, and where the notes begin."""
    of_text, of_keys, of_starts = jax.random.split(key, 3)
    starts = jax.random.randint(of_starts, (batch,), 0, last_start(length) + 1)
    keys = jax.random.randint(of_keys, (batch, DIGITS), 0, 10)
    return with_pass_key(sample_windows(text, length, batch, of_text), keys, starts), starts


def tuning_loss(
    block: int, model: Decoder, batch: tuple[Int[Array, "batch length"], Int[Array, " batch"]]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Nats per byte, and besides those of the key's digits where they can be known: again in the note, and at last."""
    windows, starts = batch
    nats = landmark_losses(block, model, windows)
    # The first byte is not predicted.
    again = jax.vmap(lambda each, start: lax.dynamic_slice(each, (start,), (DIGITS,)))(nats, starts + AGAIN - 1).mean()
    answer = nats[:, -DIGITS:].mean()
    bits = {"again": again, "answer": answer}
    return nats.mean() + again + answer, {name: each / jnp.log(2) for name, each in bits.items()}


def tune(run: Run, config: Config, text: UInt8[Array, " bytes"], trained: Fitted) -> Fitted:
    """The trained landmark model after more training, on windows with pass keys."""
    settings = config.pass_key
    return fit(
        run,
        "pass_key",
        build=partial(build, config, LANDMARK),
        loss=partial(tuning_loss, config.block),
        optimiser=settings.optimiser(config.weight_decay),
        data=Generated(partial(sample, text, settings.length, settings.batch_size)),
        key=jax.random.key(config.seed + 1),
        schedule=settings.schedule(),
        seeds=config.seeds,
        parameters=trained.state.parameters,
    )


def tested_windows(config: Config, windows: Int[Array, "windows length"]) -> Int[Array, "windows length"]:
    """Windows with notes spread evenly over them; in those longer than in training, where only retrieval reaches."""
    count, length = windows.shape[0], windows.shape[1] - 1
    last = last_start(length)
    if length > config.length:
        last -= config.layers * (config.chunk + config.block)
    keys = np.random.default_rng(config.seed).integers(0, 10, (count, DIGITS))
    return with_pass_key(windows, jnp.asarray(keys), jnp.asarray(np.linspace(0, last, count).astype(int)))
