"""Prompts: the beginning of a sentence from a novel or from an address to Congress, and the question which it is."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jattn.data.corpus import Document
from jattn.data.text import moby_dick, state_of_the_union

Encode = Callable[[str], list[int]]

BEFORE = "Is this text from a novel or from a speech?\n\nText:"
AFTER = "\nAnswer: It is from a"
NAMES = (" novel", " speech")
YEARS = (1790, 1900)
"""Of the addresses: those of the novel's century, so that it is not the age of the language that tells."""


class Prompts(NamedTuple):
    """Tokens, all of one length, and whether the text is from an address."""

    tokens: Int[np.ndarray, "prompts length"]
    labels: Bool[np.ndarray, " prompts"]


class Task(NamedTuple):
    """Prompts that heads are chosen by, prompts that they are tested on, and the tokens of the two answers."""

    calibration: Prompts
    test: Prompts
    answers: tuple[int, int]


def build_task(encode: Encode, length: int, calibration: int, test: int, seed: int) -> Task:
    """Both kinds of text as often; the test's are of other chapters and addresses than those that heads are chosen by.

    Raises:
      ValueError: there is no room for text, or there are not as many sentences so long.
      FileNotFoundError: the texts are not on this machine; says which command brings them.
    """
    before, after = encode(BEFORE), encode(AFTER)
    room = length - len(before) - len(after)
    if room < 8:
        raise ValueError(f"length must leave room for 8 tokens of text; got {length}, which leaves {room}")
    addresses = [each for each in state_of_the_union().documents if YEARS[0] <= int(each.name[:4]) < YEARS[1]]
    rng = np.random.default_rng(seed)
    parts = []
    for part, count in enumerate((calibration, test)):
        kinds = [
            _beginnings(_sentences(documents[part::2], rng), encode, room, count // 2)
            for documents in (moby_dick().documents, addresses)
        ]
        tokens = np.array([[*before, *text, *after] for pair in zip(*kinds, strict=True) for text in pair])
        parts.append(Prompts(tokens, np.arange(len(tokens)) % 2 == 1))
    answers = [encode(name) for name in NAMES]
    return Task(parts[0], parts[1], (answers[0][-1], answers[1][-1]))


def random_task(vocabulary: int, length: int, calibration: int, test: int, seed: int) -> Task:
    """Random tokens, which are of neither kind."""
    rng = np.random.default_rng(seed)
    parts = [
        Prompts(rng.integers(vocabulary, size=(count, length)), np.arange(count) % 2 == 1)
        for count in (calibration, test)
    ]
    return Task(parts[0], parts[1], (0, 1))


def _sentences(documents: Sequence[Document], rng: np.random.Generator) -> Iterator[str]:
    """Sentences of all documents, in random order."""
    text = "\n".join(document.content.decode() for document in documents)
    sentences = [" ".join(each.split()) for each in re.split(r"(?<=[.!?])\s+", text)]
    for place in rng.permutation(len(sentences)):
        yield sentences[place]


def _beginnings(sentences: Iterator[str], encode: Encode, room: int, count: int) -> list[list[int]]:
    """The first tokens of sentences that have as many."""
    found = []
    for sentence in sentences:
        if sentence[:1].isupper() and len(tokens := encode(" " + sentence)) >= room:
            found.append(tokens[:room])
        if len(found) == count:
            return found
    raise ValueError(f"texts must have {count} sentences of {room} tokens; they have {len(found)}")
