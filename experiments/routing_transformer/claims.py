"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Roy, Saffar, Vaswani and Grangier, TACL 2021, arXiv 2003.05997. Its models are five hundred times as large
and read up to 8,192 tokens; what is tested here is whether its claims hold in small. That time goes with length to
the power 1.5 is measured by `jattn bench scaling`.
"""

import numpy as np

from experiments.routing_transformer.config import Config
from experiments.routing_transformer.measure import Clusters, Look, PerSeed
from jattn.runs import Bar, Claim, Run

SMALL_GAP = 0.01
"""Bits per byte between local and full attention below which no share of the gap can be told, in any seed."""

CONTENT_WINS = Claim(
    "clusters by content help",
    "1 for a seed in which routing has fewer bits per byte than random clusters, and random no more than local, else 0",
    "Wikitext-103 perplexity 15.8, against 18.3 of Transformer-XL",
    Bar(low=1.0),
    "the models trained with routing, their clusters made random when tested",
)
RECOVERS = Claim(
    "routing recovers the gap",
    "(local − routing) / (local − full) in bits per byte",
    "better than full attention at its scale",
    Bar(low=0.3),
    "random clusters in routing's place",
)
LOOKS_ELSEWHERE = Claim(
    "routing heads look elsewhere",
    "Jensen-Shannon divergence of local and routing heads less that between local heads, nats, the least of the layers",
    "local and routing close to the maximum, log 2; local and local lower",
    Bar(low=0.05),
    "local heads in the routing heads' places",
)
COMMITMENT_FALLS = Claim(
    "vectors come to lie near centroids",
    "mean squared distance to the nearest centroid after training, over that before",
    "an auxiliary loss, no figure",
    Bar(high=0.9),
    "the same vectors, centroids at random places",
)
CLUSTERS_USED = Claim(
    "clusters are used",
    "share of centroids that are nearest to no token",
    "no figure",
    Bar(high=0.1),
    "before training, when centroids are at random places",
)
FINDS_KEYS = Claim(
    "clusters hold the keys that matter",
    "recall of the 16 keys with the most weight in clusters, over that in random clusters",
    "maximum inner product search, no figure",
    Bar(low=2.0),
    "other random clusters",
)


def settle(
    run: Run,
    config: Config,
    bits: dict[str, PerSeed],
    random_at_test: PerSeed,
    looks: dict[str, Look],
    before: Clusters,
    after: Clusters,
) -> None:
    """Judge the claims.

    Args:
      bits: per byte of test documents, by arm.
      random_at_test: bits of the arm "routing" with random clusters.
      before, after: training.
    """
    local, random, routing, full = (bits[arm] for arm in ("local", "random", "routing", "full"))
    gap = np.where(local - full >= SMALL_GAP, local - full, np.nan)
    told = f"bits per byte: {', '.join(f'{arm} {each.mean():.4f}' for arm, each in bits.items())}"
    small = f"; local less full is below {SMALL_GAP}, so nothing is to be recovered" if np.isnan(gap).any() else ""
    run.settle(CONTENT_WINS, ordered(routing, random, local), ordered(random_at_test, random, local), told + small)
    run.settle(RECOVERS, (local - routing) / gap, (local - random) / gap, told + small)
    run.settle(LOOKS_ELSEWHERE, farther(looks["routing"]), farther(looks["local"]))
    run.settle(COMMITMENT_FALLS, after.nearest / before.nearest, after.nearest_random / before.nearest)
    run.settle(CLUSTERS_USED, after.empty, before.empty)
    run.settle(FINDS_KEYS, after.recall / after.recall_random, after.recall_other / after.recall_random)


def ordered(routing: PerSeed, random: PerSeed, local: PerSeed) -> PerSeed:
    """1 for a seed in which routing < random ≤ local."""
    return ((routing < random) & (random <= local)).astype(np.float64)


def farther(look: Look) -> PerSeed:
    """Divergence of the other heads from local ones less that among local ones, in the layer where it is least."""
    return (look.across - look.among).min(axis=1)
