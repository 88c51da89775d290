"""A published model: its heads for either task, what they read, what the circuit keeps alone, and one head made to
read for the other task as it reads for the first."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.circuit_reuse import patching, tasks
from experiments.circuit_reuse.config import COMPARED, FIRST, Pretrained
from experiments.circuit_reuse.tasks import Encode, Prompts
from jattn.interpret import patching_effect, random_heads
from jattn.models.language_model import LanguageModel

log = logging.getLogger("jattn")


class Reads(NamedTuple):
    """What every head's last row reads, mean over prompts.

    Attributes:
      right, wrong: weight on the right answer where the prompt has it, and on the wrong ones.
      right_in_twin, wrong_in_twin: of names, on the same two in the twin, where the wrong one is right.
    """

    right: Float[np.ndarray, "layers heads"]
    wrong: Float[np.ndarray, "layers heads"]
    right_in_twin: Float[np.ndarray, "layers heads"]
    wrong_in_twin: Float[np.ndarray, "layers heads"]


class Search(NamedTuple):
    """One task's heads.

    Attributes:
      clean, corrupt: margins of the right answer over the twin's, of prompts and of their twins.
      patched: margins with one head's output of the twin.
      reads: what heads read.
    """

    clean: Float[np.ndarray, " prompts"]
    corrupt: Float[np.ndarray, " prompts"]
    patched: Float[np.ndarray, "layers heads prompts"]
    reads: Reads

    def effects(self, which: slice = slice(None)) -> Float[np.ndarray, "layers heads"]:
        """Share of the flip that comes through each head, from some of the prompts."""
        patched, clean, corrupt = (each[..., which].mean(axis=-1) for each in (self.patched, self.clean, self.corrupt))
        return np.asarray(patching_effect(jnp.asarray(patched), jnp.asarray(clean), jnp.asarray(corrupt)))


class Answered(NamedTuple):
    """Of each prompt of colours.

    Attributes:
      choice: which of its three colours is the likeliest: 0 the right one, 1 the twin's.
      among_all: whether the right one is the likeliest of all tokens.
    """

    choice: Int[np.ndarray, " prompts"]
    among_all: Bool[np.ndarray, " prompts"]

    @property
    def right(self) -> Bool[np.ndarray, " prompts"]:
        """Whether the right one is the likeliest of the three."""
        return self.choice == 0


class Repair(NamedTuple):
    """Answers to held-out prompts of colours.

    Attributes:
      head: the one that is made to read wrong colours, chosen by names alone.
      plain: as they are; `repaired`: where that head reads the wrong colours; `promoted`: the right one; `uniform`:
        everything alike.
      others: where another head of its layer reads the wrong ones; `readers`: one of those that read the wrong name
        most and do not matter; `together`: several heads at once that help and read the wrong name.
    """

    head: tuple[int, int]
    plain: Answered
    repaired: Answered
    promoted: Answered
    uniform: Answered
    others: dict[str, Answered]
    readers: dict[str, Answered]
    together: dict[str, Answered]


class Found(NamedTuple):
    """What one run measures.

    Attributes:
      names, colours: the searches; `best`, `best_for_colours`: the largest 5 % of heads.
      steering: effects on the answer through the queries of the first heads of names.
      direct, unrelated, attributed: effects on the output with feed-forward layers frozen, with three unrelated names
        for a twin, and as slopes tell; of some prompts of names.
      circuit: heads that are kept: the best, and the first of those that steer them.
      kept, kept_random: margins of held-out names without all other heads, and with as many random ones for the
        circuit, over the mean margin with all heads.
    """

    names: Search
    colours: Search
    best: Bool[np.ndarray, "layers heads"]
    best_for_colours: Bool[np.ndarray, "layers heads"]
    steering: Float[np.ndarray, "layers heads"]
    direct: Float[np.ndarray, "layers heads"]
    unrelated: Float[np.ndarray, "layers heads"]
    attributed: Float[np.ndarray, "layers heads"]
    circuit: Bool[np.ndarray, "layers heads"]
    kept: Float[np.ndarray, " prompts"]
    kept_random: Float[np.ndarray, " sets"]
    repair: Repair


class Reader:
    """A model and its tokenizer, by which prompts are read batch by batch."""

    def __init__(self, model: LanguageModel, encode: Encode, part: Pretrained, capacity: int):
        self.model, self.encode, self.part, self.capacity = model, encode, part, capacity

    def read(self, tokens: Int[np.ndarray, "prompts length"], lengths: Int[np.ndarray, " prompts"]) -> list:
        """Prompts, in batches."""
        return [
            patching.read(self.model, jnp.asarray(tokens[which]), jnp.asarray(lengths[which]), self.capacity)
            for which in self.batches(len(tokens))
        ]

    def batches(self, count: int) -> Iterable[slice]:
        return (slice(begin, begin + self.part.batch) for begin in range(0, count, self.part.batch))

    def answers(self, prompts: Prompts) -> list[tuple[Array, Array]]:
        """Right answers, and the twins', in batches."""
        each = jnp.asarray(prompts.answers)
        return [(each[which, 0], each[which, 1]) for which in self.batches(len(each))]


def top(effects: Float[np.ndarray, "layers heads"], count: int) -> Bool[np.ndarray, "layers heads"]:
    """The heads of the largest effects, of either sign."""
    mask = np.zeros(effects.shape, bool)
    mask.flat[np.argsort(-np.abs(effects), axis=None, kind="stable")[:count]] = True
    return mask


def search(reader: Reader, prompts: Prompts, stop_if_asked: Callable[[], None]) -> tuple[Search, list, list]:
    """Margins under all patches of one head to the output, what heads read, and the prompts and twins as read."""
    clean, corrupt = (reader.read(each, prompts.lengths) for each in (prompts.tokens, prompts.corrupt))
    answers = reader.answers(prompts)
    patched = []
    for batch in zip(clean, corrupt, answers, strict=True):
        patched.append(patching.sweep(reader.model, *batch, at_once=reader.part.at_once))
        stop_if_asked()

    def margin(batches: list) -> np.ndarray:
        made = [patching.margin(reader.model, *each) for each in zip(batches, *zip(*answers, strict=True), strict=True)]
        return np.concatenate([np.asarray(each) for each in made])

    reads = Reads(
        *_weights(reader, clean, prompts, prompts.tokens), *_weights(reader, corrupt, prompts, prompts.corrupt)
    )
    return Search(margin(clean), margin(corrupt), np.concatenate(patched, axis=-1), reads), clean, corrupt


def _weights(
    reader: Reader, batches: list, prompts: Prompts, tokens: Int[np.ndarray, "prompts length"]
) -> list[Float[np.ndarray, "layers heads"]]:
    """Weight on the words that are right and wrong in the prompts, wherever these tokens have them."""
    rows = np.concatenate([np.asarray(patching.rows(reader.model, each)) for each in batches], axis=1)
    found = []
    for mask in (prompts.right, prompts.wrong):
        words = [set(row[places].tolist()) for row, places in zip(prompts.tokens, mask, strict=True)]
        places = np.array([[token in word for token in row] for row, word in zip(tokens, words, strict=True)])
        # Where both rows have the word, it may also be in the example of colours, which is no answer.
        places &= prompts.right | prompts.wrong
        found.append(np.einsum("lphk,pk->lh", rows[..., : tokens.shape[1]], places) / len(tokens))
    return found


def answered(
    reader: Reader,
    prompts: Prompts,
    batches: list,
    heads: Bool[np.ndarray, "layers heads"],
    weights: Float[np.ndarray, "prompts length"],
) -> Answered:
    """Answers where these heads read by these weights in the last row."""
    padded = np.zeros((len(weights), reader.capacity), np.float32)
    padded[:, : weights.shape[1]] = weights
    choice, among_all = [], []
    for batch, which in zip(batches, reader.batches(len(weights)), strict=True):
        logits = np.asarray(patching.override(reader.model, batch, jnp.asarray(heads), jnp.asarray(padded[which])))
        choices = prompts.answers[which]
        choice.append(np.take_along_axis(logits, choices, axis=1).argmax(axis=1))
        among_all.append(logits.argmax(axis=1) == choices[:, 0])
    return Answered(np.concatenate(choice), np.concatenate(among_all))


def row_on(places: Bool[np.ndarray, "prompts length"]) -> Float[np.ndarray, "prompts length"]:
    """Rows of weights that read some places alike and nothing else."""
    return (places / places.sum(axis=1, keepdims=True)).astype(np.float32)


def measure(
    model: LanguageModel, encode: Encode, part: Pretrained, seed: int, stop_if_asked: Callable[[], None]
) -> Found:
    """Heads searched by both tasks; the circuit and the repair tried on prompts that no head was found by."""
    rng = np.random.default_rng(seed)
    names, held_names = _two(tasks.names(encode, part.searched + part.held_out_names, rng), part.searched)
    colours, held_colours = _two(tasks.colours(encode, part.searched + part.held_out_colours, rng), part.searched)
    reader = Reader(model, encode, part, max(names.tokens.shape[1], colours.tokens.shape[1]))
    of_names, clean, corrupt = search(reader, names, stop_if_asked)
    effects = of_names.effects()
    log.info("names: mean margin %.2f, of twins %.2f", of_names.clean.mean(), of_names.corrupt.mean())
    count = max(1, int(part.share * effects.size))
    best = top(effects, count)
    steering, direct, unrelated, attributed = _beside(reader, names, clean[0], corrupt[0], top(effects, FIRST))
    stop_if_asked()

    circuit = best | top(steering, FIRST)
    kept, kept_random = _alone(reader, held_names, names, circuit, seed)
    log.info("the circuit alone keeps %.2f of the margin, random heads %.2f", kept.mean(), kept_random.mean())
    stop_if_asked()
    of_colours, *_ = search(reader, colours, stop_if_asked)
    log.info("colours: mean margin %.2f, of twins %.2f", of_colours.clean.mean(), of_colours.corrupt.mean())
    stop_if_asked()
    return Found(
        of_names, of_colours, best, top(of_colours.effects(), count), steering, direct, unrelated, attributed,
        circuit, kept, kept_random, _repair(reader, held_colours, effects, of_names.reads, seed),
    )  # fmt: skip


def _two(prompts: Prompts, at: int) -> tuple[Prompts, Prompts]:
    return prompts.part(slice(at)), prompts.part(slice(at, None))


def _beside(
    reader: Reader,
    names: Prompts,
    clean: patching.Read,
    corrupt: patching.Read,
    receivers: Bool[np.ndarray, "layers heads"],
) -> list[Float[np.ndarray, "layers heads"]]:
    """Of the first batch: effects through queries, direct ones, with unrelated names for twins, and by slopes."""
    model, answers = reader.model, reader.answers(names)[0]
    unrelated = reader.read(names.unrelated[: reader.part.batch], names.lengths[: reader.part.batch])[0]
    before, twins, others = (patching.margin(model, each, *answers).mean() for each in (clean, corrupt, unrelated))

    def effects(end: Array, corrupt: patching.Read, **options: Any) -> np.ndarray:
        patched = patching.sweep(model, clean, corrupt, answers, **options).mean(axis=-1)
        return np.asarray(patching_effect(jnp.asarray(patched), before, end))

    slopes = patching.attribution(model, clean, corrupt, *answers) / (twins - before)
    return [
        effects(twins, corrupt, receivers=receivers),
        effects(twins, corrupt, freeze_feed_forward=True, at_once=reader.part.at_once),
        effects(others, unrelated, at_once=reader.part.at_once),
        np.asarray(slopes),
    ]


def _alone(
    reader: Reader, held_out: Prompts, names: Prompts, circuit: Bool[np.ndarray, "layers heads"], seed: int
) -> tuple[Float[np.ndarray, " prompts"], Float[np.ndarray, " sets"]]:
    """Margins that are kept without all other heads, which have their mean over texts with unrelated names."""
    model = reader.model
    which = slice(reader.part.batch)
    means = patching.mean_outputs(model, reader.read(names.unrelated[which], names.lengths[which])[0])
    batches = list(zip(reader.read(held_out.tokens, held_out.lengths), reader.answers(held_out), strict=True))
    whole = np.concatenate([patching.margin(model, each, *answers) for each, answers in batches]).mean()

    def kept(heads: Any) -> np.ndarray:
        made = [
            patching.margin_of_circuit(model, each, *answers, jnp.asarray(heads), means) for each, answers in batches
        ]
        return np.concatenate([np.asarray(each) for each in made]) / whole

    keys = jax.random.split(jax.random.key(seed), reader.part.random)
    drawn = [kept(random_heads(key, jnp.asarray(circuit), same_layers=False)).mean() for key in keys]
    return kept(circuit), np.array(drawn)


def _repair(
    reader: Reader, held_out: Prompts, effects: Float[np.ndarray, "layers heads"], reads: Reads, seed: int
) -> Repair:
    """One head at a time, or a few, with rows of the last token set."""

    def heads(order: Float[np.ndarray, "layers heads"], count: int) -> list[tuple[int, ...]]:
        """The first in falling order."""
        chosen = np.argsort(-order, axis=None, kind="stable")[:count]
        return [tuple(map(int, np.unravel_index(each, order.shape))) for each in chosen]

    def answer(heads: list[tuple[int, ...]], places: Bool[np.ndarray, "prompts length"]) -> Answered:
        mask = np.zeros(effects.shape, bool)
        for head in heads:
            mask[head] = True
        return answered(reader, held_out, batches, mask, row_on(places))

    def each_alone(heads: list[tuple[int, ...]]) -> dict[str, Answered]:
        return {f"{layer}.{head}": answer([(layer, head)], held_out.wrong) for layer, head in heads}

    batches = reader.read(held_out.tokens, held_out.lengths)
    # Heads that help and read the wrong name more than the right one: they lower what they read, or have it lowered.
    helping = heads(np.maximum(effects, 0) * np.maximum(reads.wrong - reads.right, 0), 4)
    layer, head = helping[0]
    beside = np.random.default_rng(seed).permutation(np.delete(np.arange(effects.shape[1]), head))
    readers = heads(np.where(top(effects, COMPARED), -1, reads.wrong), reader.part.random)
    several = [helping[:2], helping]
    inside = np.arange(held_out.tokens.shape[1]) < held_out.lengths[:, None]
    found = Repair(
        (layer, head),
        answer([], held_out.wrong),
        answer(helping[:1], held_out.wrong),
        answer(helping[:1], held_out.right),
        answer(helping[:1], inside),
        each_alone([(layer, each) for each in sorted(beside[: reader.part.random].tolist())]),
        each_alone(readers),
        {" ".join(f"{layer}.{head}" for layer, head in some): answer(some, held_out.wrong) for some in several},
    )
    log.info("colours right among three: %.2f, repaired %.2f", found.plain.right.mean(), found.repaired.right.mean())
    return found
