"""Which tokens are attention sinks beside the primary one, by norms and cosines of features after each block.

Layers are counted from 0; a trajectory has one entry for each block, of the features after it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

CANDIDATES = 3
"""The primary sink is among so many first tokens."""
THRESHOLD = 0.9
"""A sink's cosine with the primary one is above it, strictly and up to sign."""
FACTOR = 3.0
"""From which change of norm, between two blocks, a trajectory jumps or drops."""
NOISE, PRIMARY_LIKE = 0.1, 0.7
"""Lifetimes below the first and from the second on, as shares of the primary sink's."""

Window = tuple[int, int]
"""The first layer, and the first behind the last."""
Kind = Literal["secondary", "primary-like"]


class Sink(NamedTuple):
    """A token that has the primary sink's direction.

    Attributes:
      start: the first layer where it has.
      lifetime: in how many layers it has.
      kind: "primary-like" lives nearly as long as the primary sink does.
    """

    position: int
    start: int
    lifetime: int
    kind: Kind


def primary_position(norms: Float[np.ndarray, "layers tokens"]) -> int:
    """Of the first three tokens, the one whose features have the largest norm, mean over layers."""
    return int(norms[:, :CANDIDATES].mean(axis=0).argmax())


def largest_window(norms: Float[np.ndarray, " layers"]) -> Window | None:
    """From behind the largest jump of the primary sink's norm to the largest drop after it: the released code's rule.

    Returns:
      None where the norm never rises; where it never falls afterwards, the window ends with the model.
    """
    changes = np.diff(norms)
    if not (changes > 0).any():
        return None
    begin = int(changes.argmax()) + 1
    behind = changes[begin:]
    return begin, begin + 1 + int(behind.argmin()) if (behind < 0).any() else len(norms)


def windows(norms: Float[np.ndarray, " layers"], factor: float = FACTOR) -> list[Window]:
    """The layers in which the primary sink is one: stretches of its trajectory between jumps and drops, behind a jump.

    A model may make its sink in stages, with the norm cut between; none: it has no primary sink.

    Raises:
      ValueError: a factor that is no rise.
    """
    if factor <= 1:
        raise ValueError(f"factor must be above 1; got {factor}")
    jumps = (norms[1:] >= factor * norms[:-1]) & (norms[1:] > norms[:-1])
    drops = (norms[:-1] >= factor * norms[1:]) & (norms[1:] < norms[:-1])
    edges = [int(each) + 1 for each in np.flatnonzero(jumps | drops)] + [len(norms)]
    return [(begin, end) for begin, end in pairwise(edges) if jumps[begin - 1]]


def alive(
    cosines: Float[np.ndarray, "layers tokens"], within: Iterable[Window], threshold: float = THRESHOLD
) -> Bool[np.ndarray, "layers tokens"]:
    """In which layers of those windows a token has the primary sink's direction."""
    inside = np.zeros(len(cosines), bool)
    for begin, end in within:
        inside[begin:end] = True
    return (np.abs(cosines) > threshold) & inside[:, None]


def detect(
    cosines: Float[np.ndarray, "layers tokens"],
    primary: int,
    within: Sequence[Window],
    *,
    threshold: float = THRESHOLD,
    noise: float = NOISE,
    primary_like: float = PRIMARY_LIKE,
) -> list[Sink]:
    """The sinks behind the primary one, by position.

    The released code's bounds on lifetimes, 4 and all layers but 15, are for models of 28 to 64 layers; here they are
    shares of the layers in which the primary sink is one.

    Args:
      cosines: of each token's features with those of the primary sink, after each block.
      within: the layers that count, as `windows` or `largest_window` tells.

    Raises:
      ValueError: windows beyond the layers there are.
    """
    if any(not 0 <= begin < end <= len(cosines) for begin, end in within):
        raise ValueError(f"within must be windows of {len(cosines)} layers; got {list(within)}")
    life = sum(end - begin for begin, end in within)
    living = alive(cosines, within, threshold)
    lifetimes = living.sum(axis=0)
    return [
        Sink(
            position,
            int(living[:, position].argmax()),
            int(lifetimes[position]),
            "primary-like" if lifetimes[position] >= primary_like * life else "secondary",
        )
        for position in range(primary + 1, cosines.shape[1])
        if lifetimes[position] > 0 and lifetimes[position] >= noise * life
    ]


def levels(sinks: Iterable[Sink]) -> Counter[tuple[int, int]]:
    """How many sinks start at a layer and live for so many."""
    return Counter((sink.start, sink.lifetime) for sink in sinks)
