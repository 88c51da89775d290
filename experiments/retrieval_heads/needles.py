"""Prompts: a needle, a sentence found nowhere else, in a haystack of other text, and a question that it answers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Encode = Callable[[str], list[int]]


class Needle(NamedTuple):
    """A sentence and the question that it answers."""

    sentence: str
    question: str


SCORED = (
    Needle(
        "The oldest clock in Varnholt was built from forty-one copper spoons.",
        "What was the oldest clock in Varnholt built from?",
    ),
    Needle(
        "The ferry to Quillon Island leaves only when the green lantern is lit twice.",
        "When does the ferry to Quillon Island leave?",
    ),
    Needle(
        "The winning pumpkin at the Tresmont fair was watered with cold peppermint tea.",
        "What was the winning pumpkin at the Tresmont fair watered with?",
    ),
    Needle(
        "The password of the Halberg archive is seven silver foxes under a walnut tree.",
        "What is the password of the Halberg archive?",
    ),
)
"""Heads are scored by these."""
HELD_OUT = (
    Needle(
        "The bakery on Orsini Street closes whenever a yellow tram passes the fountain.",
        "When does the bakery on Orsini Street close?",
    ),
    Needle(
        "The bridge of Kelmora is held together with braided seaweed and honey.",
        "What is the bridge of Kelmora held together with?",
    ),
    Needle(
        "The night train to Pelvano carries one wagon full of unripe oranges.",
        "What does the night train to Pelvano carry?",
    ),
    Needle(
        "The library of Dunmarrow lends umbrellas painted with maps of the moon.",
        "What does the library of Dunmarrow lend?",
    ),
)
"""Masks are tested on these."""
INSTRUCTION = (
    "\n\nAnswer the question with the exact sentence of the text above that answers it. Copy that sentence and write "
    "nothing else.\nQuestion: {}"
)
BEFORE = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
"""SmolLM2's chat, around what the user says."""


class Prompt(NamedTuple):
    """Tokens, where among them the needle is, and what it says.

    Attributes:
      span: the needle's first token, and the first behind it; in a prompt without it, where it would be, as long.
    """

    tokens: Int[np.ndarray, " length"]
    span: tuple[int, int]
    needle: Needle


def build_prompt(
    encode: Encode,
    needle: Needle,
    haystack: Sequence[int],
    depth: float,
    length: int,
    *,
    order: Int[np.ndarray, " needle"] | None = None,
    absent: bool = False,
) -> Prompt:
    """A prompt of that many tokens, made of tokens rather than of text, so that the needle's place is known.

    Args:
      encode: text -> tokens, none added.
      haystack: tokens of other text, at least as many as there is room for.
      depth: of the needle, 0 at the beginning and 1 at the end; it moves back to the end of a sentence.
      order: the needle's tokens are put in this order.
      absent: the needle is left out, for as much more of the haystack.

    Raises:
      ValueError: there is no room, or the haystack is too short.
    """
    inside = np.array(encode(" " + needle.sentence))
    inside = inside if order is None else inside[order]
    before, behind = encode(BEFORE), encode(INSTRUCTION.format(needle.question) + AFTER)
    room = length - len(before) - len(behind) - len(inside)
    if room < 1:
        raise ValueError(f"length must leave room for a haystack; {length} tokens fall short by {1 - room}")
    if len(haystack) < room + len(inside):
        raise ValueError(f"haystack must have at least {room + len(inside)} tokens; got {len(haystack)}")
    ends = [0] + [place + 1 for place in range(room) if haystack[place] in _sentence_ends(encode)]
    place = max(end for end in ends if end <= depth * room)
    rest = haystack[: room + len(inside)] if absent else [*haystack[:place], *inside, *haystack[place:room]]
    begin = len(before) + place
    return Prompt(np.array([*before, *rest, *behind]), (begin, begin + len(inside)), needle)


def _sentence_ends(encode: Encode) -> set[int]:
    return {encode(f"word{mark}")[-1] for mark in ".?!"}
