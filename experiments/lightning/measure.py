"""What is measured besides bits per byte: time per token against length, and what decoding carries."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

import kernels
from experiments.lightning.config import Config
from experiments.lightning.model import build
from jattn.bench.cpu import Timed, gradients, timed
from jattn.bench.interleave import interleave
from jattn.mechanisms.lightning import decay_by_layer

ROUNDS = 3
TIMED = ("softmax", "lightning")
log = logging.getLogger("jattn")
Seconds = dict[str, Float[np.ndarray, "rounds lengths"]]


def attend(name: str, heads: int) -> partial[Array]:
    """Causal attention of query, key and value."""
    if name == "softmax":
        return partial(kernels.attention, mask=kernels.masks.Causal("start"))
    return partial(kernels.causal_linear_attention, log_decay=decay_by_layer(heads, 0, 2), scale=1.0)


def seconds(config: Config) -> tuple[Seconds, Seconds]:
    """CPU seconds of a forward and backward pass of attention alone, by name and round.

    Of as many sequences of each length as make `timed_tokens`, and of one sequence.
    """
    together, alone = ({name: np.empty((ROUNDS, len(config.timed_lengths))) for name in TIMED} for _ in range(2))
    for column, length in enumerate(config.timed_lengths):
        most = config.timed_tokens // length
        for batch in sorted({most, 1}):
            for name, values in interleave(_contenders(config, batch, length), ROUNDS).items():
                if batch == most:
                    together[name][:, column] = values
                if batch == 1:
                    alone[name][:, column] = values
                log.info("%s, %d sequences of %d: %.3g s", name, batch, length, np.median(values))
    return together, alone


def _contenders(config: Config, batch: int, length: int) -> dict[str, Timed]:
    rng = np.random.default_rng(length)
    shape = (batch, length, config.timed_heads, config.timed_head_dim)
    arrays = [jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(4)]
    return {name: timed(gradients(attend(name, config.timed_heads)), arrays) for name in TIMED}


def flatness(taken: Float[np.ndarray, "rounds lengths"]) -> Float[np.ndarray, " rounds"]:
    """The longest time over the shortest, of as many tokens in sequences of each length."""
    return taken.max(axis=1) / taken.min(axis=1)


def exponent(lengths: tuple[int, ...], taken: Float[np.ndarray, "rounds lengths"]) -> Float[np.ndarray, " rounds"]:
    """Slope of the logarithm of time against that of length."""
    return np.polyfit(np.log(lengths), np.log(taken).T, 1)[0]


def decoding_bytes(config: Config) -> dict[str, tuple[int, int]]:
    """Bytes that decoding carries after each of `decoded` tokens: TransNormer's state, or softmax's keys and values."""
    model = nnx.eval_shape(lambda: build(config, "lightning", nnx.Rngs(0)))

    def of_state(length: int) -> int:
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        _, state = nnx.eval_shape(lambda model, tokens: model(tokens), model, tokens)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    first, last = config.decoded
    cache = 2 * config.layers * config.width * 4
    return {"lightning": (of_state(first), of_state(last)), "softmax": (first * cache, last * cache)}
