"""Sinks as they are in a model: how they are read, how feed-forward layers make them, and what rescaling one does."""

from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from experiments.secondary_sinks.config import Config
from experiments.secondary_sinks.detector import Sink, alive, detect, largest_window
from experiments.secondary_sinks.survey import Survey, commonest_start, reading, survey
from experiments.secondary_sinks.trace import Reader, stage_cosines, trace, unchanged
from jattn.models.language_model import LanguageModel


class Read(NamedTuple):
    """How much sinks are read against tokens of the same id that are none; mean over the sinks of each text with any.

    Attributes:
      born: in the blocks that read them as sinks.
      unborn: in the blocks up to the one that makes them.
    """

    born: Float[np.ndarray, " texts"]
    unborn: Float[np.ndarray, " texts"]


class Steered(NamedTuple):
    """Sinks with what a feed-forward layer adds to them rescaled, and other tokens of the same texts.

    Attributes:
      texts: of each sink.
      scales: in rising order, 1 among them.
      scores, lifetimes: of the sinks.
      beside: scores of the other token, which nothing is done to, in the same sweep.
      random, aligned: score of the other token given a vector as long as the sink's, in a random direction or in the
        primary sink's, as a multiple of its own.
    """

    texts: list[int]
    scales: Float[np.ndarray, " scales"]
    scores: Float[np.ndarray, "sinks scales"]
    lifetimes: Int[np.ndarray, "sinks scales"]
    beside: Float[np.ndarray, "sinks scales"]
    random: Float[np.ndarray, " sinks"]
    aligned: Float[np.ndarray, " sinks"]


class Stages(NamedTuple):
    """Mean |cosine| with the primary sink by stage of the layer that makes sinks, of each text with any, and of others.

    Attributes:
      others: of tokens of the same ids that are no sinks, all texts.
    """

    sinks: dict[str, Float[np.ndarray, " texts"]]
    others: dict[str, float]


def one_window(known: Survey) -> int:
    """How many sinks the released code's rule finds, of one jump and one drop."""
    count = 0
    for norms, cosines, found, begin in zip(
        known.trace.norms, known.trace.cosines, known.found, known.texts.begins.tolist(), strict=True
    ):
        window = largest_window(norms[:, found.primary])
        within = [] if window is None else [window]
        count += sum(sink.position >= begin for sink in detect(cosines[found.primary], found.primary, within))
    return count


def permuted(reader: Reader, known: Survey, rng: np.random.Generator) -> Survey:
    """The same texts where the model has its blocks in another order."""
    model: LanguageModel = nnx.merge(*nnx.split(reader.model))
    model.blocks = nnx.List([model.blocks[each] for each in rng.permutation(model.config.layers).tolist()])
    return survey(known.texts, trace(reader._replace(model=model), known.texts.tokens), known.unread)


def read(known: Survey) -> Read:
    """How much sinks are read, against tokens of the same id."""
    tokens, looked, marked = known.texts.tokens, known.looked_at(), known.is_sink()
    born, unborn = [], []
    for text, found in enumerate(known.found):
        ratios = []
        for sink in found.sinks:
            alike = looked & ~marked & (tokens == tokens[text, sink.position])
            if looked[text, sink.position] and alike.any():
                ratios.append(
                    [
                        known.trace.scores[text, blocks, sink.position].mean()
                        / known.trace.scores[:, blocks].mean(axis=1)[alike].mean()
                        for blocks in (reading(found.windows, sink.start), slice(sink.start + 1))
                    ]
                )
        if ratios:
            after, before = np.mean(ratios, axis=0)
            born.append(after)
            unborn.append(before)
    return Read(np.array(born), np.array(unborn))


def stages(reader: Reader, known: Survey) -> Stages | None:
    """Where on its way through the feed-forward layer a sink gets the primary sink's direction; without sinks, None."""
    start = commonest_start(known.found)
    if start is None:
        return None
    some = next(found for found in known.found if any(sink.start == start for sink in found.sinks))
    creating = next(begin for begin, end in some.windows if begin <= start < end)
    found = stage_cosines(reader, known.texts.tokens, start, creating, some.primary)
    marked, tokens = np.zeros(known.texts.tokens.shape, bool), known.texts.tokens
    for text, each in enumerate(known.found):
        marked[text, [sink.position for sink in each.sinks if sink.start == start]] = True
    alike = known.looked_at() & ~known.is_sink() & np.isin(tokens, tokens[marked])
    rows = marked.any(axis=1)
    return Stages(
        {name: np.abs(each[rows]).mean(axis=1, where=marked[rows]) for name, each in found.items()},
        {name: float(np.abs(each[alike]).mean()) if alike.any() else np.nan for name, each in found.items()},
    )


def steer(reader: Reader, known: Survey, config: Config, rng: np.random.Generator) -> Steered | None:
    """Sinks rescaled one at a time, each at all scales in one batch; without sinks, None."""
    start = commonest_start(known.found)
    chosen = [] if start is None else _drawn(known, start, rng)[: config.steered]
    made = [_steer(reader, known, text, sink, config.scales, rng) for text, sink in chosen]
    if not made:
        return None
    scales = np.array([1.0, *config.scales])
    order = np.argsort(scales)
    scores, lifetimes, beside, random, aligned = (np.array(each) for each in zip(*made, strict=True))
    texts = [text for text, _ in chosen]
    return Steered(texts, scales[order], scores[:, order], lifetimes[:, order], beside[:, order], random, aligned)


def _steer(
    reader: Reader, known: Survey, text: int, sink: Sink, scales: tuple[float, ...], rng: np.random.Generator
) -> tuple:
    """One batch: a row for each scale, and two for the other token; before them the text as it is, which is known."""
    tokens, (primary, within, _) = known.texts.tokens[text], known.found[text]
    looked, marked = known.looked_at()[text], known.is_sink()[text]
    free = np.flatnonzero(looked & ~marked)
    alike = free[tokens[free] == tokens[sink.position]]
    other = int(rng.choice(alike if len(alike) else free))

    norm, count = known.trace.added_norms[text, sink.start, sink.position], len(scales)
    changes = unchanged(reader.model, count + 2, len(tokens))
    changes.norms[:count, sink.start, sink.position] = np.array(scales) * norm
    changes.norms[count:, sink.start, other] = 0
    changes.positions[count:, sink.start, other] = True
    random, towards = rng.normal(size=reader.model.config.width), known.trace.candidates[text, primary, sink.start]
    changes.vectors[count:, sink.start] = [norm * each / np.linalg.norm(each) for each in (random, towards)]

    after = trace(reader, np.repeat(tokens[None], count + 2, axis=0), changes)
    scores = np.concatenate([known.trace.scores[[text]], after.scores])[:, reading(within, sink.start)].mean(axis=1)
    cosines = np.concatenate([known.trace.cosines[[text]], after.cosines])[:, primary, :, [sink.position]]
    lifetimes = alive(np.moveaxis(cosines[0, : count + 1], 1, 0), within).sum(axis=0)
    return (
        scores[: count + 1, sink.position], lifetimes, scores[: count + 1, other],
        *(scores[count + 1 :, other] / scores[0, other]),
    )  # fmt: skip


def _drawn(known: Survey, start: int, rng: np.random.Generator) -> list[tuple[int, Sink]]:
    """Of each text, in random order, a sink that starts there and is looked at; no two behind the same tokens.

    Texts of a kind may begin alike, and features are those of what comes before: the same sink would count twice.
    """
    looked, chosen, seen = known.looked_at(), [], set()
    for text in rng.permutation(len(known.found)).tolist():
        sinks = [sink for sink in known.found[text].sinks if sink.start == start and looked[text, sink.position]]
        for each in rng.permutation(len(sinks)).tolist():
            before = known.texts.tokens[text, : sinks[each].position + 1].tobytes()
            if before not in seen:
                seen.add(before)
                chosen.append((text, sinks[each]))
                break
    return chosen
