"""A network of two layers without feed-forward layers whose weights are set by hand: what each head does is known.

Layer 1: a head that reads the token before, and one that reads the first token. Layer 2: a head that reads what
followed the present token before, and copies it (induction; Olsson et al. 2022, arXiv 2209.11895), and one that reads
everything alike. Its answers are those of the induction head.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import kernels
from experiments.retrieval_heads.score import copied, retrieval_score
from kernels.masks.algebra import Mask

HEADS = ("previous token", "first token", "induction", "uniform")
SHARP = 50.0
"""Score of what a head means to read; of all else it is 0."""
STRICTLY_BEFORE: Mask = kernels.masks.Causal("start") & ~kernels.masks.Window(0, 0, "start")


class Answer(NamedTuple):
    """What the network says, token by token, and which key each head reads most in the rows that said it."""

    tokens: Int[np.ndarray, " rows"]
    argmax: Int[np.ndarray, "heads rows"]


def next_token(
    tokens: Int[Array, " length"], vocabulary: int
) -> tuple[Float[Array, "length vocabulary"], Int[Array, "heads length"]]:
    """Logits of the network for every row, and the key that each head reads most."""
    length = len(tokens)
    words, places = jax.nn.one_hot(tokens, vocabulary), jnp.eye(length)
    before = jnp.eye(length, k=-1).at[0, 0].set(1)  # row i asks for place i - 1
    first = jnp.zeros((length, length)).at[:, 0].set(1)
    read, found_1 = _attend([before, first], [places, places], words, kernels.masks.Causal("start"))
    after = read[:, 0]  # the token before each, where its key can be found by the present token
    nothing = jnp.zeros_like(words)
    logits, found_2 = _attend([words, nothing], [after, after], words, STRICTLY_BEFORE)
    return logits[:, 0], jnp.concatenate([found_1, found_2])


@partial(jax.jit, static_argnames=("vocabulary", "count"))
def _say(prompt: Array, vocabulary: int, count: int) -> tuple[Array, Array]:
    """The prompt with its answer, and the key that each head reads most in the rows that say it."""
    length = len(prompt)

    def say(place: Array, text: Array) -> Array:
        logits, _ = next_token(text, vocabulary)
        return text.at[place].set(logits[place - 1].argmax())

    text = jax.lax.fori_loop(length, length + count, say, jnp.pad(prompt, (0, count)))
    return text, next_token(text, vocabulary)[1][:, length - 1 : -1]


def answer(prompt: Int[np.ndarray, " length"], vocabulary: int, count: int) -> Answer:
    """The likeliest tokens that follow a prompt."""
    text, argmax = _say(jnp.asarray(prompt, jnp.int32), vocabulary, count)
    return Answer(np.asarray(text)[len(prompt) :], np.asarray(argmax))


class Problem(NamedTuple):
    """Random tokens, none twice but for the trigger, which is before the needle and at the end."""

    prompt: Int[np.ndarray, " length"]
    span: tuple[int, int]


def problem(rng: np.random.Generator, vocabulary: int = 64, length: int = 48, needle: int = 6) -> Problem:
    """A needle somewhere behind a trigger."""
    tokens = rng.permutation(vocabulary)[:length]
    begin = int(rng.integers(2, length - needle - 1))
    return Problem(np.append(tokens, tokens[begin - 1]), (begin, begin + needle))


def scores(
    given: Problem, vocabulary: int = 64, shift: int = 0
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Retrieval scores of all heads in both forms ("times", "set").

    Args:
      shift: by so many rows are argmaxes read too late, to see that scores are of the rows that say each token.
    """
    length = given.span[1] - given.span[0]
    made = answer(given.prompt, vocabulary, length + shift)
    argmax = made.argmax[:, shift : shift + length]
    hits = copied(argmax, np.concatenate([given.prompt, made.tokens]), made.tokens[:length], given.span)
    return retrieval_score(hits, argmax, length), retrieval_score(hits, argmax, length, "set")


def _attend(
    queries: list[Array], keys: list[Array], values: Float[Array, "length width"], mask: Mask
) -> tuple[Float[Array, "length heads width"], Int[Array, "heads length"]]:
    """Heads that read values of theirs by keys of theirs."""
    query, key = (jnp.stack(each, axis=1)[None] for each in (queries, keys))
    value = jnp.stack([values] * len(keys), axis=1)[None]
    read, found = kernels.attention(query, key, value, mask=mask, scale=SHARP, statistics=("maximum",))
    return read[0], jnp.asarray(found.argmax)[0]
