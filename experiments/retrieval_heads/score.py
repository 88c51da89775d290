"""Retrieval scores: how much of a needle each head copies into the answer."""

import re
from collections import Counter
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Form = Literal["times", "set"]


def copied(
    argmax: Int[np.ndarray, "*heads rows"],
    context: Int[np.ndarray, " length"],
    produced: Int[np.ndarray, " rows"],
    span: tuple[int, int],
    *,
    token: bool = True,
) -> Bool[np.ndarray, "*heads rows"]:
    """Where a head retrieves: its row reads most from within the span, and from the very token that is produced.

    Args:
      argmax: the key of the largest weight in each row of queries whose logits give `produced`; -1: none.
      span: first token of the needle, and the first behind it.
      token: whether the second condition is asked for; without it, a head that looks at the needle without copying it
        counts too.
    """
    within = (span[0] <= argmax) & (argmax < span[1])
    return within & (context[argmax] == produced) if token else within


def retrieval_score(
    hits: Bool[np.ndarray, "*heads rows"], argmax: Int[np.ndarray, "*heads rows"], length: int, form: Form = "times"
) -> Float[np.ndarray, "*heads"]:
    """The share of a needle that each head copies (Wu et al. 2024, arXiv 2404.15574, section 2).

    Args:
      hits: see `copied`.
      length: tokens of the needle.
      form: "times", as in the released code: every row that retrieves counts, so that a token copied twice counts
        twice. "set", as in the paper: tokens of the needle that were copied at least once.

    Raises:
      ValueError: the needle has no token, or the form is unknown.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
    if form == "times":
        return hits.sum(axis=-1) / length
    if form != "set":
        raise ValueError(f"form must be among times, set; got {form!r}")
    heads = list(np.ndindex(hits.shape[:-1]))
    counts = np.array([len(set(argmax[head][hits[head]].tolist())) for head in heads], float)
    return counts.reshape(hits.shape[:-1]) / length


def recall(answer: str, needle: str) -> float:
    """The share of a needle's words that an answer has, ROUGE-1's recall; of an answer without words, 0.

    Raises:
      ValueError: the needle has no word.
    """
    found, wanted = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, needle))
    if not wanted:
        raise ValueError("needle must have a word; it has none")
    return (found & wanted).total() / wanted.total()


def mean_score(
    scores: Float[np.ndarray, "prompts layers heads"], recalls: Float[np.ndarray, " prompts"]
) -> Float[np.ndarray, "layers heads"]:
    """Mean over the prompts whose answer has more than half of the needle's words.

    Raises:
      ValueError: there is none, so that nothing is known of any head.
    """
    right = recalls > 0.5
    if not right.any():
        raise ValueError(f"no answer of {len(recalls)} has more than half of its needle's words; scores are undefined")
    return scores[right].mean(axis=0)
