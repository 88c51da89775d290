"""What one head reads in the rows that say an answer, as a page."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jattn.interpret import token_highlight

NEAR, ROWS = 16, 10
"""How many tokens around a needle are shown, and how many rows at most."""


class Reading(NamedTuple):
    """A head's rows of weights.

    Attributes:
      head: which, in words.
      tokens: those that are read.
      said: the token that each row says.
      span: first token of the needle, and the first behind it.
    """

    head: str
    tokens: list[str]
    said: list[str]
    weights: Float[np.ndarray, "rows tokens"]
    span: tuple[int, int]


def page(reading: Reading) -> str:
    """The needle and what stands around it, shaded by each row's weights, and how much of the row that is."""
    near = slice(max(reading.span[0] - NEAR, 0), reading.span[1] + NEAR)
    shown = reading.weights[:ROWS, near]
    labels = [
        f"says {word!r}, reads {share:.2f} of its weight here"
        for word, share in zip(reading.said, shown.sum(axis=1), strict=False)
    ]
    return token_highlight(reading.tokens[near], shown, labels=labels, title=reading.head, largest=1.0)
