"""The sinks of texts, and how much each is read."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from experiments.secondary_sinks.detector import Sink, Window, detect, levels, primary_position, windows
from experiments.secondary_sinks.texts import Texts
from experiments.secondary_sinks.trace import Trace


class Found(NamedTuple):
    """Of one text.

    Attributes:
      primary: the primary sink's position.
      windows: the layers in which it is one; none: there is no primary sink, and so no other.
      sinks: those of the answer.
    """

    primary: int
    windows: list[Window]
    sinks: list[Sink]


class Survey(NamedTuple):
    """Texts as they are, and their sinks.

    Attributes:
      unread: see `Config`.
    """

    texts: Texts
    trace: Trace
    found: list[Found]
    unread: int

    def is_sink(self) -> Bool[np.ndarray, "texts length"]:
        """Which tokens of answers are sinks."""
        marked = np.zeros(self.texts.tokens.shape, bool)
        for text, found in enumerate(self.found):
            marked[text, [sink.position for sink in found.sinks]] = True
        return marked

    def looked_at(self) -> Bool[np.ndarray, "texts length"]:
        """Which tokens scores are taken of: answers but for their ends."""
        places = np.arange(self.texts.tokens.shape[1])
        return (places >= self.texts.begins[:, None]) & (places < places[-1] + 1 - self.unread)


def find(trace: Trace, begins: Int[np.ndarray, " texts"]) -> list[Found]:
    """The sinks of each text's answer."""
    found = []
    for norms, cosines, begin in zip(trace.norms, trace.cosines, begins.tolist(), strict=True):
        primary = primary_position(norms)
        within = windows(norms[:, primary])
        sinks = [sink for sink in detect(cosines[primary], primary, within) if sink.position >= begin]
        found.append(Found(primary, within, sinks))
    return found


def survey(texts: Texts, trace: Trace, unread: int) -> Survey:
    """The sinks of texts."""
    return Survey(texts, trace, find(trace, texts.begins), unread)


def all_levels(found: list[Found]) -> Counter[tuple[int, int]]:
    """The levels of all sinks."""
    return levels(sink for each in found for sink in each.sinks)


def commonest_start(found: list[Found]) -> int | None:
    """The layer where most sinks start; None: there is none."""
    starts = Counter(sink.start for each in found for sink in each.sinks)
    return starts.most_common(1)[0][0] if starts else None


def reading(within: list[Window], start: int) -> slice:
    """The blocks whose attention reads a sink that starts after a block, as long as the window lasts.

    Raises:
      ValueError: the block is in no window.
    """
    for begin, end in within:
        if begin <= start < end:
            return slice(start + 1, end + 1)
    raise ValueError(f"start must be in one of the windows {within}; got {start}")


def rank_correlation(one: Float[np.ndarray, " values"], other: Float[np.ndarray, " values"]) -> float:
    """Spearman's; where one of them is constant, 0."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
