"""The primary sink taken away: what feed-forward layers add to it cut to what they add to other tokens."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.secondary_sinks.config import Config
from experiments.secondary_sinks.planted import spread
from experiments.secondary_sinks.survey import Survey
from experiments.secondary_sinks.trace import Reader, trace, unchanged


class Removed(NamedTuple):
    """Of each text; perplexity without over perplexity with it, and weight on the token with it over that without.

    Attributes:
      perplexity, score: of the primary sink.
      other_perplexity, other_score: of a random token that is no sink.
    """

    perplexity: Float[np.ndarray, " texts"]
    score: Float[np.ndarray, " texts"]
    other_perplexity: Float[np.ndarray, " texts"]
    other_score: Float[np.ndarray, " texts"]


def remove(reader: Reader, known: Survey, config: Config, rng: np.random.Generator) -> Removed | None:
    """The primary sink, and for control another token, cut to the median norm of what each feed-forward layer adds.

    Cut are the blocks from the one that makes the sink to the one that ends it. Where a text has no primary sink, None.
    """
    chosen = spread(len(known.found), config.edited)
    if not all(known.found[text].windows for text in chosen):
        return None
    tokens = known.texts.tokens[chosen]
    free = known.looked_at() & ~known.is_sink()
    others = [int(rng.choice(np.flatnonzero(free[text]))) for text in chosen]
    primaries = [known.found[text].primary for text in chosen]
    before = trace(reader, tokens, nats=True)
    factors, perplexities = [], []
    for places in (primaries, others):
        changes = unchanged(reader.model, *tokens.shape)
        for row, (text, place) in enumerate(zip(chosen, places, strict=True)):
            within = known.found[text].windows
            layers = slice(within[0][0], within[-1][1] + 1)
            changes.norms[row, layers, place] = np.median(known.trace.added_norms[text, layers], axis=-1)
        after = trace(reader, tokens, changes, nats=True)
        factors.append([])
        for row, (text, place) in enumerate(zip(chosen, places, strict=True)):
            blocks = [block for begin, end in known.found[text].windows for block in range(begin + 1, end + 1)]
            blocks = [block for block in blocks if block < reader.model.config.layers]
            factors[-1].append(before.scores[row, blocks, place].mean() / after.scores[row, blocks, place].mean())
        perplexities.append(np.exp(np.mean(after.nats, axis=1) - np.mean(before.nats, axis=1)))
    return Removed(perplexities[0], np.array(factors[0]), perplexities[1], np.array(factors[1]))
