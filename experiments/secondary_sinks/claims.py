"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Wong, Zhang, Mahon, Luk, Isopoussu and Zhao 2025, arXiv 2512.22213. Figures are recomputed
from the files released with it.
"""

import numpy as np

from experiments.secondary_sinks.detector import Sink
from experiments.secondary_sinks.planted import Planted
from experiments.secondary_sinks.pretrained import Read, Stages, Steered
from experiments.secondary_sinks.removal import Removed
from experiments.secondary_sinks.survey import Found, commonest_start, rank_correlation
from jattn.runs import Bar, Claim, Run

MONOTONE = 0.9
"""The rank correlation from which a score is said to follow a norm."""
LONGER, SHORTER = 4.0, 0.5
"""Scales at which lifetimes are held against those at scale 1."""

SHARP = Claim(
    "sinks start at one layer",
    "share of a text's sinks that start where most of all texts do",
    "all 277 sinks of R1-Distill-Qwen-14B start at layer 22",
    Bar(low=0.8),
    "blocks in another order: sinks at their commonest layer, over the sinks there are in the right order",
)
READ = Claim(
    "sinks are read",
    "score of sinks over that of tokens of the same id that are none, in the blocks that read them",
    "weaker than the primary sink's, not negligible",
    Bar(low=5.0),
    "the same tokens in the blocks up to the one that makes them",
)
MADE = Claim(
    "the feed-forward layer maps them to one direction",
    "|cosine| of what the layer adds to a sink with what made the primary sink",
    "about 0.98, while inputs are not alike",
    Bar(low=0.8),
    "of that layer's input with the primary sink's",
)
STEERED = Claim(
    "the norm sets how much a sink is read",
    f"share of sinks whose score's rank correlation with the scale of what the layer adds is at least {MONOTONE}",
    "the norm of the vector sets the score",
    Bar(low=0.8),
    "another token's score in the same sweep",
)
LIVES = Claim(
    "the norm sets how long a sink lives",
    f"share of sinks that live longer when what the layer adds is {LONGER:g} times as long",
    "the norm of the vector sets the lifetime",
    Bar(low=0.8),
    f"when it is {SHORTER:g} times as long",
)
DIRECTION = Claim(
    "a long vector of another direction makes no sink",
    "score of a token given a random vector as long as a sink's, over its own",
    "not in the paper",
    Bar(high=2.0),
    "given one in the primary sink's direction",
)
PLANTED_FOUND = Claim(
    "what is planted is found",
    "agreement of detected with planted pairs of layer and position, as long as the primary sink",
    "not in the paper",
    Bar(low=1.0),
    "planted in a random direction",
)
PLANTED_READ = Claim(
    "planted sinks are read by their norm",
    "rank correlation of their score with the norm planted",
    "not in the paper",
    Bar(low=MONOTONE),
    "score of the answer's other tokens",
)
PLANTED_LIVES = Claim(
    "planted sinks live by their norm",
    "layers that they live longer at the largest norm than at the primary sink's",
    "not in the paper",
    Bar(low=1.0),
    "at the primary sink's norm over the next smaller one",
)
PLANTED_DIRECTION = Claim(
    "planted in another direction they are no sinks",
    "score of tokens given a random vector as long as the primary sink, over their own",
    "not in the paper",
    Bar(high=2.0),
    "given one in the primary sink's direction",
)
REMOVED_READ = Claim(
    "without what made it the primary sink is not read",
    "score of the primary sink over that with its vector cut to the median norm",
    "not in the paper",
    Bar(low=2.0),
    "another token cut so, mean of texts",
)
REMOVED_NATS = Claim(
    "the primary sink is of use",
    "perplexity with it cut over perplexity as it is",
    "not in the paper",
    Bar(low=1.01),
    "another token cut so, mean of texts",
)
REMOVED_ELSEWHERE = Claim(
    "other tokens can be cut",
    "change of perplexity, up to sign, with another token cut to the median norm",
    "not in the paper",
    Bar(high=0.01),
    "the primary sink cut so, mean of texts",
)


def settle_pretrained(
    run: Run,
    found: list[Found],
    shuffled: list[Found],
    read: Read,
    stages: Stages | None,
    steered: Steered | None,
) -> None:
    """Judge the claims on sinks as they are; what cannot be measured, as there is none, is not a number."""
    start, other = commonest_start(found), commonest_start(shuffled)
    shares = [_share(each.sinks, start) for each in found if each.sinks]
    there = sum(sink.start == other for each in shuffled for sink in each.sinks)
    sinks = sum(len(each.sinks) for each in found)
    run.settle(SHARP, _or_nan(shares), there / max(1, sinks))
    run.settle(READ, _or_nan(read.born), float(np.mean(_or_nan(read.unborn))))
    if stages is None or steered is None:
        for claim in (MADE, STEERED, LIVES, DIRECTION):
            run.settle(claim, np.nan, np.nan, "there is no sink")
        return
    run.settle(MADE, stages.sinks["output, of the primary's making"], float(stages.sinks["input"].mean()))
    run.settle(STEERED, _follow(steered.scores, steered.scales), _follow(steered.beside, steered.scales))
    as_is = steered.lifetimes[:, steered.scales == 1]
    longer, shorter = (
        float((steered.lifetimes[:, steered.scales == scale] > as_is).mean()) for scale in (LONGER, SHORTER)
    )
    run.settle(LIVES, longer, shorter)
    run.settle(DIRECTION, steered.random, float(steered.aligned.mean()))


def settle_planted(run: Run, planted: Planted | None) -> None:
    """Judge the claims on sinks that are put in."""
    if planted is None:
        for claim in (PLANTED_FOUND, PLANTED_READ, PLANTED_LIVES, PLANTED_DIRECTION):
            run.settle(claim, np.nan, np.nan, "there is no primary sink")
        return
    at_one = planted.strengths.tolist().index(1.0)
    run.settle(PLANTED_FOUND, planted.agreement, float(planted.random_agreement.mean()))
    follow, beside = (
        [rank_correlation(planted.strengths, each) for each in scores] for scores in (planted.scores, planted.beside)
    )
    run.settle(PLANTED_READ, follow, beside)
    lives = planted.lifetimes
    run.settle(PLANTED_LIVES, lives[:, -1] - lives[:, at_one], float((lives[:, at_one] - lives[:, at_one - 1]).mean()))
    run.settle(
        PLANTED_DIRECTION,
        planted.random_score / planted.scores[:, 0],
        float((planted.scores[:, at_one] / planted.scores[:, 0]).mean()),
    )


def settle_removal(run: Run, removed: Removed | None) -> None:
    """Judge the claims on the primary sink taken away."""
    if removed is None:
        for claim in (REMOVED_READ, REMOVED_NATS, REMOVED_ELSEWHERE):
            run.settle(claim, np.nan, np.nan, "there is no primary sink")
        return
    run.settle(REMOVED_READ, removed.score, float(removed.other_score.mean()))
    run.settle(REMOVED_NATS, removed.perplexity, float(removed.other_perplexity.mean()))
    elsewhere, here = (np.abs(each - 1) for each in (removed.other_perplexity, removed.perplexity))
    run.settle(REMOVED_ELSEWHERE, elsewhere, float(here.mean()))


def _share(sinks: list[Sink], start: int | None) -> float:
    return float(np.mean([sink.start == start for sink in sinks]))


def _follow(scores: np.ndarray, scales: np.ndarray) -> float:
    """Share of rows whose scores follow the scales."""
    return float(np.mean([rank_correlation(scales, each) >= MONOTONE for each in scores]))


def _or_nan(values: list[float] | np.ndarray) -> np.ndarray:
    return np.asarray(values) if len(values) else np.array([np.nan])
