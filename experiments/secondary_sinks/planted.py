"""Sinks that are put in: the primary sink's direction, added where a feed-forward layer of the middle adds its own."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.secondary_sinks.config import Config
from experiments.secondary_sinks.detector import alive
from experiments.secondary_sinks.survey import Survey, find, reading
from experiments.secondary_sinks.trace import Reader, trace, unchanged


class Planted(NamedTuple):
    """Of each text.

    Attributes:
      strengths: in rising order from 0, as shares of the primary sink's norm.
      agreement, random_agreement: of what the detector finds with what is planted at strength 1, shared pairs of layer
        and position over all of either; and where the vector has a random direction.
      scores, lifetimes: mean over what is planted.
      beside: mean score of the answer's other tokens.
      random_score: of what is planted in a random direction, at strength 1.
    """

    strengths: Float[np.ndarray, " strengths"]
    agreement: Float[np.ndarray, " texts"]
    random_agreement: Float[np.ndarray, " texts"]
    scores: Float[np.ndarray, "texts strengths"]
    lifetimes: Float[np.ndarray, "texts strengths"]
    beside: Float[np.ndarray, "texts strengths"]
    random_score: Float[np.ndarray, " texts"]


def plant(reader: Reader, known: Survey, config: Config, rng: np.random.Generator) -> Planted | None:
    """Sinks planted in texts that stand evenly spread among all; where one has no primary sink, None."""
    texts = spread(len(known.found), config.edited)
    if not all(known.found[text].windows for text in texts):
        return None
    made = [_plant(reader, known, text, config, rng) for text in texts]
    return Planted(np.array([0.0, *config.strengths]), *(np.array(each) for each in zip(*made, strict=True)))


def spread(count: int, wanted: int) -> list[int]:
    """So many of a number of texts, evenly spread."""
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()


def _plant(reader: Reader, known: Survey, text: int, config: Config, rng: np.random.Generator) -> tuple:
    tokens, (primary, within, _) = known.texts.tokens[text], known.found[text]
    layer = sum(within[0]) // 2
    places = _commonest(known, text, config.planted)

    rows = len(config.strengths) + 1
    changes = unchanged(reader.model, rows, len(tokens))
    changes.positions[:, layer, places] = True
    towards = known.trace.candidates[text, primary, layer]
    random = rng.normal(size=len(towards))
    changes.vectors[:-1, layer] = np.array(config.strengths)[:, None] * towards
    changes.vectors[-1, layer] = random * np.linalg.norm(towards) / np.linalg.norm(random)

    after = trace(reader, np.repeat(tokens[None], rows, axis=0), changes)
    begins = np.repeat(known.texts.begins[text], rows)
    detected = [_from(layer, each.sinks) - _from(layer, known.found[text].sinks) for each in find(after, begins)]
    wanted = {(layer, int(place)) for place in places}
    agreement = [len(each & wanted) / len(each | wanted) for each in detected]
    scores = np.concatenate([known.trace.scores[[text]], after.scores])[:, reading(within, layer)].mean(axis=1)
    cosines = np.concatenate([known.trace.cosines[[text]], after.cosines])[:, primary]
    lifetimes = np.array([alive(each, within).sum(axis=0)[places].mean() for each in cosines])
    others = known.looked_at()[text]
    others[places] = False
    planted = scores[:, places].mean(axis=1)
    return (
        agreement[config.strengths.index(1.0)], agreement[-1],
        planted[:-1], lifetimes[:-1], scores[:-1, others].mean(axis=1), planted[-1],
    )  # fmt: skip


def _commonest(known: Survey, text: int, most: int) -> np.ndarray:
    """Where the commonest token is that is looked at, is no sink, and stands at so many places at most."""
    looked, marked, tokens = known.looked_at()[text], known.is_sink()[text], known.texts.tokens[text]
    values, counts = np.unique(tokens[looked], return_counts=True)
    counts[(counts > most) | np.isin(values, tokens[marked])] = 0
    return np.flatnonzero(looked & (tokens == values[counts.argmax()]))


def _from(layer: int, sinks: list) -> set[tuple[int, int]]:
    return {(sink.start, sink.position) for sink in sinks if sink.start >= layer}
