"""Texts in which to look for sinks: questions and answers of four kinds, the answers made or taken by a seed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jattn.data.corpus import Corpus
from jattn.data.text import moby_dick, python_library, state_of_the_union

Encode = Callable[[str], list[int]]

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""SmolLM2's chat, before an answer."""
QUESTIONS = {
    "arithmetic": "Do a page of sums, one after another, with the steps in between.",
    "table": "Give me the measurements as a table.",
    "code": "Show me a part of the module.",
    "prose": "Read to me from where we stopped.",
}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Texts(NamedTuple):
    """Texts of one length.

    Attributes:
      begins: the first token of each answer. Questions, which texts of a kind share, are not looked at for sinks.
      kinds: of each text.
    """

    tokens: Int[np.ndarray, "texts length"]
    begins: Int[np.ndarray, " texts"]
    kinds: tuple[str, ...]


def make_texts(encode: Encode, of_a_kind: int, length: int, seed: int) -> Texts:
    """As many texts of each kind, cut to a length.

    Raises:
      ValueError: there are not as many tokens in an answer.
      FileNotFoundError: a corpus is not on this machine.
    """
    rng = np.random.default_rng(seed)
    novel, addresses, library = moby_dick(), state_of_the_union(), python_library()
    tokens, begins, kinds = [], [], []
    for kind, question in QUESTIONS.items():
        before = encode(CHAT.format(question))
        for which in range(of_a_kind):
            if kind == "arithmetic":
                answer = arithmetic(rng, length)
            elif kind == "table":
                answer = table(rng, length, ("markdown", "commas", "columns")[which % 3])
            else:
                corpus = library if kind == "code" else (novel, addresses)[which % 2]
                answer = excerpt(rng, corpus, 8 * length, "\n" if kind == "code" else ". ")
            text = [*before, *encode(answer)][:length]
            if len(text) < length:
                raise ValueError(f"a text must have {length} tokens; {kind} {which} has {len(text)}")
            tokens.append(text)
            begins.append(len(before))
            kinds.append(kind)
    return Texts(np.array(tokens, np.int32), np.array(begins), tuple(kinds))


def arithmetic(rng: np.random.Generator, lines: int) -> str:
    """Sums, differences and products, right ones."""
    written = []
    for number in range(1, lines + 1):
        one, other = sorted(rng.integers(12, 1000, 2).tolist(), reverse=True)
        tens, ones = other // 10 * 10, other % 10
        match rng.integers(3):
            case 0:
                line = f"{one} + {other} = {one} + {tens} + {ones} = {one + tens} + {ones} = {one + other}"
            case 1:
                line = f"{one} - {other} = {one - other}, because {one - other} + {other} = {one}"
            case _:
                line = f"{one} * {ones} = {one * ones}"
        written.append(f"{number}. {line}")
    return "\n".join(written)


def table(rng: np.random.Generator, rows: int, form: str) -> str:
    """Measurements by month and year, with marks of Markdown, with commas, or in columns."""
    names = ["Month", "Rain", "Days", "Mean"]
    cells = [
        [f"{MONTHS[row % 12]} {1990 + row // 12}", *(str(each) for each in rng.integers(0, 400, 2)), f"{degrees:.1f}"]
        for row, degrees in enumerate(rng.uniform(-5, 25, rows))
    ]
    match form:
        case "markdown":
            return "\n".join(_between_bars(row) for row in [names, ["---"] * 4, *cells])
        case "commas":
            return "\n".join(",".join(row) for row in [names, *cells])
        case _:
            return "\n".join("".join(each.ljust(10) for each in row).rstrip() for row in [names, *cells])


def excerpt(rng: np.random.Generator, corpus: Corpus, size: int, behind: str) -> str:
    """So many characters of a document drawn from those that have twice as many, from behind a mark on."""
    long = [document for document in corpus.documents if len(document.content) > 2 * size]
    text = long[rng.integers(len(long))].content.decode()
    begin = text.find(behind, int(rng.integers(max(1, len(text) - 2 * size)))) + len(behind)
    return text[begin : begin + size]


def _between_bars(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"
