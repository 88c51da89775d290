"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Wu, Wang, Xiao, Peng and Fu 2024, arXiv 2404.15574. Shares are recomputed from the scores released with it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from experiments.retrieval_heads import trained
from experiments.retrieval_heads.config import CLAIMED
from experiments.retrieval_heads.constructed import HEADS
from experiments.retrieval_heads.pretrained import Found
from experiments.retrieval_heads.score import mean_score
from jattn.runs import Bar, Claim, Run

IS_ONE = 0.1
"""The score from which a head is called a retrieval head."""

BY_CONSTRUCTION = Claim(
    "an induction head scores one",
    "least score of a head that copies by construction, in both forms",
    "a head that copies all of the needle has score 1",
    Bar(low=0.99),
    "the other heads of that network, the largest score",
)
EMERGES = Claim(
    "it emerges with the task",
    "largest score of a small decoder that has learned to copy",
    "not in the paper",
    Bar(low=0.5),
    "the same decoder before training",
)
READS = Claim(
    "needles are found",
    "recall of needles' words, all prompts with a needle",
    "only right answers count",
    Bar(low=0.7),
    "the needle left out",
)
FEW = Claim(
    "retrieval heads are few",
    f"share of heads whose mean score is at least {IS_ONE}",
    "3.2 % of Llama-2-7B-80K, up to 6 % of other models",
    Bar(0.005, 0.12),
    "scored against another span, as long",
)
MOST_NEVER = Claim(
    "most heads never retrieve",
    "share of heads whose score is 0",
    "70.2 % of Llama-2-7B-80K",
    Bar(low=0.5),
    "scored without the condition that the token read is the token said",
)
STABLE = Claim(
    "they are the same for other needles",
    "correlation of scores from two needles with those from two others",
    "scores correlate 0.84 to 0.91 within a family of models",
    Bar(low=0.8),
    "heads permuted",
)
LOST = Claim(
    "without them the needle is lost",
    "recall without ten random heads, mean of the sets, less that without the best ten; needles that scored no head",
    "below 50 % of needles without 50 heads, little change without 50 random ones",
    Bar(low=0.3),
    "each random set in place of the best",
)
LOST_ALIKE = Claim(
    "their layers are not what matters",
    "the same with random heads of the same layers",
    "not in the paper",
    Bar(low=0.3),
    "each random set in place of the best",
)
NOTHING_THERE = Claim(
    "where no needle is, nothing is retrieved",
    "mean score of the best ten heads at the place where the needle would be",
    "not in the paper",
    Bar(high=0.05),
    "the needle there",
)


def settle_constructed(run: Run, scores: Float[np.ndarray, "problems forms heads"]) -> None:
    """Judge the claim on the network whose weights are set by hand."""
    which = HEADS.index("induction")
    run.settle(BY_CONSTRUCTION, scores[..., which].min(axis=1), np.delete(scores, which, axis=-1).max(axis=(1, 2)))


def settle_trained(run: Run, after: Sequence[trained.Found], before: Sequence[trained.Found]) -> None:
    """Judge the claim on small decoders."""
    told = f"answers right in every token: {', '.join(f'{each.accuracy:.2f}' for each in after)}"
    run.settle(
        EMERGES, [float(each.scores.max()) for each in after], [float(each.scores.max()) for each in before], told
    )


def settle_pretrained(run: Run, found: Found) -> None:
    """Judge the claims on the published model."""
    recalls, scores = found.scored.recalls, found.scores
    run.settle(READS, np.concatenate([recalls, found.held_out.recalls]), float(found.absent.recalls.mean()))
    mean = mean_score(scores.times, recalls)
    run.settle(FEW, float((mean >= IS_ONE).mean()), float((mean_score(scores.elsewhere, recalls) >= IS_ONE).mean()))
    run.settle(MOST_NEVER, float((mean == 0).mean()), float((mean_score(scores.looking, recalls) == 0).mean()))
    run.settle(STABLE, *_halves(scores.times, recalls))
    _settle_masks(run, LOST, found, found.without_random)
    _settle_masks(run, LOST_ALIKE, found, found.without_alike)
    best = found.best[:CLAIMED]
    there = scores.times.reshape(len(recalls), -1)[recalls > 0.5][:, best].mean()
    run.settle(
        NOTHING_THERE,
        float(found.absent_scores.times.reshape(len(found.absent.recalls), -1)[:, best].mean()),
        float(there),
    )


def _halves(scores: np.ndarray, recalls: np.ndarray) -> tuple[float, float]:
    """Correlation between heads' scores of the first and of the last needles; and with heads permuted."""
    half = len(recalls) // 2
    one, other = (mean_score(scores[part], recalls[part]).ravel() for part in (slice(half), slice(half, None)))
    permuted = np.random.default_rng(0).permutation(other)
    return float(np.corrcoef(one, other)[0, 1]), float(np.corrcoef(one, permuted)[0, 1])


def _settle_masks(run: Run, claim: Claim, found: Found, drawn: Float[np.ndarray, "sets prompts"]) -> None:
    told = f"recall with all heads {found.held_out.recalls.mean():.2f}, without random ones {drawn.mean():.2f}"
    others = [np.delete(drawn, each, axis=0).mean() - drawn[each].mean() for each in range(len(drawn))]
    run.settle(claim, drawn.mean(axis=0) - found.without["zero"][CLAIMED], others, told)
