"""A network of three layers whose weights are set by hand and that knows who is given to: its circuit is known.

The residual stream has four parts as wide as the vocabulary: the word, the word before that was the same (written by
the duplicate-token head, 0.0), the word to be avoided (the inhibition head, 1.0) and the answer. The mover (2.0) reads
names that are not to be avoided and adds them to the answer; the negative mover (2.1) reads those that are and takes
half of them away. The other two heads are idle.

Margin of the right name over the wrong one: 1 + ½ on a prompt, its opposite on the corrupted twin. With one head's
output of the twin and all others as they are: mover -1 + ½, negative mover 1 - ½, all others 1 + ½, so that effects
on the output are 2/3, 1/3 and 0. Through the mover's queries alone, the inhibition head's is 2/3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jattn.interpret import Receiver, Set, Where, capture, edit, one_head_each, patching_effect, path_patch
from jattn.layers.taps import scope, tap

NAMES, FILLERS = 8, 8
VOCABULARY = NAMES + FILLERS
LAYERS, HEADS = 3, 2
SHARP = 60.0
DIRECT = np.array([[0, 0], [0, 0], [2 / 3, 1 / 3]])
"""Effects of heads on the output."""
STEERING = np.array([[0, 0], [2 / 3, 0], [0, 0]])
"""Effects of heads through the mover's queries."""


class Effects(NamedTuple):
    """Effects of every head's corrupted output, as shares of the flip.

    Attributes:
      direct: on the output; `steering`: through the mover's queries.
      unfrozen: on the output, where nothing else is frozen.
    """

    direct: Float[np.ndarray, "layers heads"]
    steering: Float[np.ndarray, "layers heads"]
    unfrozen: Float[np.ndarray, "layers heads"]


def prompt(rng: np.random.Generator) -> tuple[Int[np.ndarray, " length"], Int[np.ndarray, " length"], int, int]:
    """Fillers, two names, fillers, one of the names, fillers; its twin with the other name; and the two answers."""
    right, wrong = rng.permutation(NAMES)[:2].tolist()
    fillers = NAMES + rng.permutation(FILLERS)[:7]
    pair = [right, wrong] if rng.integers(2) else [wrong, right]
    tokens = np.array([fillers[0], pair[0], fillers[1], pair[1], *fillers[2:4], wrong, *fillers[4:6]])
    corrupt = np.where(np.arange(len(tokens)) == 6, right, tokens)
    return tokens, corrupt, right, wrong


def answer(tokens: Int[Array, "batch length"]) -> Float[Array, "batch vocabulary"]:
    """Logits of what follows the last token. Sites: of a language model's layers, `query` and `head_output`."""
    words = jax.nn.one_hot(tokens, VOCABULARY)
    is_name = jnp.arange(VOCABULARY) < NAMES
    named = words * is_name
    idle = jnp.zeros_like(words)
    same, _ = _layer(0, (named, idle), (named, named), (words, words), strictly=True)
    flagged = same.sum(axis=-1, keepdims=True) * jnp.ones_like(words) / VOCABULARY
    avoid, _ = _layer(1, (jnp.ones_like(words), idle), (flagged, flagged), (same, same))
    wanted = is_name - avoid
    moved, opposed = _layer(2, (wanted, avoid), (named, named), (words, words))
    return tap("logits", moved - 0.5 * opposed)[:, -1]


def effects(rng: np.random.Generator, count: int) -> Effects:
    """Of all heads, by path patching and, beside it, by patching alone; from so many prompts."""
    problems = [prompt(rng) for _ in range(count)]
    tokens, corrupt, right, wrong = (jnp.asarray(np.stack(each)) for each in zip(*problems, strict=True))

    def margin(tokens: Array) -> Float[Array, " prompts"]:
        logits = answer(tokens)
        return (
            jnp.take_along_axis(logits, right[:, None], 1)[:, 0] - jnp.take_along_axis(logits, wrong[:, None], 1)[:, 0]
        )

    mover = [Receiver("layers.2.attention.query", Where(heads=jnp.arange(HEADS) == 0))]
    sites = [f"layers.{layer}.attention.head_output" for layer in range(LAYERS)]
    as_corrupt = capture(margin, corrupt, sites=sites).sites

    def unfrozen(senders: Array) -> Array:
        edits = [
            edit(site, Set(as_corrupt[site]), Where(heads=heads)) for site, heads in zip(sites, senders, strict=True)
        ]
        return capture(margin, tokens, edits=edits).output

    def sweep(one) -> Float[np.ndarray, "layers heads"]:
        patched = jax.jit(jax.vmap(one))(one_head_each(LAYERS, HEADS)).mean(axis=1)
        found = patching_effect(patched, margin(tokens).mean(), margin(corrupt).mean())
        return np.asarray(found).reshape(LAYERS, HEADS)

    return Effects(
        sweep(lambda senders: path_patch(margin, (tokens,), (corrupt,), senders)),
        sweep(lambda senders: path_patch(margin, (tokens,), (corrupt,), senders, mover)),
        sweep(unfrozen),
    )


def _layer(
    layer: int,
    queries: tuple[Array, Array],
    keys: tuple[Array, Array],
    values: tuple[Array, Array],
    *,
    strictly: bool = False,
) -> tuple[Array, Array]:
    """What two heads read from tokens no later (strictly: earlier) than each; a row may also read nothing."""
    with scope("layers", layer), scope("attention"):
        query = tap("query", jnp.stack(queries, axis=2))
        key, value = jnp.stack(keys, axis=2), jnp.stack(values, axis=2)
        scores = SHARP * jnp.einsum("bihd,bjhd->bhij", query, key)
        length = query.shape[1]
        may = jnp.tril(jnp.ones((length, length), bool), -1 if strictly else 0)
        scores = jnp.where(may, scores, -jnp.inf)
        nothing = jnp.full(
            (*scores.shape[:-1], 1), SHARP / 2
        )  # what reads nothing has half the score of what is sought
        weights = jax.nn.softmax(jnp.concatenate([scores, nothing], axis=-1), axis=-1)[..., :-1]
        read = tap("head_output", jnp.einsum("bhij,bjhd->bihd", weights, value))
    return read[:, :, 0], read[:, :, 1]
