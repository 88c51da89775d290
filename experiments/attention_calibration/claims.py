"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Yu, Wang, Fu, Shi, Shaikh and Lin 2024, arXiv 2406.15765.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from experiments.attention_calibration.config import Config
from experiments.attention_calibration.measure import Found
from experiments.attention_calibration.sweep import find_sinks
from jattn.interpret import mean_column_weights, paired_bootstrap
from jattn.runs import Bar, Claim, Run

CHANGE = 0.05
"""Nats from which a change of the margin counts: about one in a hundred of an answer that is a toss-up."""
PERMUTATIONS = 5
"""Of heads or layers, in controls."""

BEYOND = Claim(
    "sinks lie beyond the first token",
    "sinks but the first token, for each head and prompt, in the middle layers",
    "in most heads of most layers",
    Bar(low=0.5),
    "attention spread evenly",
)
MIDDLE = Claim(
    "they are of the middle layers",
    "sinks per head in the layers behind the middle ones, over those in the middle ones",
    "few in the first and last layers",
    Bar(high=0.25),
    "layers permuted",
)
REPEATS = Claim(
    "a head's effect is no noise",
    "rank correlation of changes of the margin, heads calibrated alone, between halves of the prompts",
    "not in the paper",
    Bar(low=0.3),
    "heads permuted",
)
NO_HARM = Claim(
    "calibration does no harm",
    "accuracy with the heads kept less that of the unchanged model, test: lower end of the 90 % bootstrap interval",
    "up to +7.30 % of accuracy, mean of data sets",
    Bar(low=-0.02),
    "the first token calibrated too",
)
GAIN = Claim(
    "calibration helps",
    "margin with the heads kept less that of the unchanged model, in nats, test",
    "up to +7.30 % of accuracy, mean of data sets",
    Bar(low=CHANGE),
    "heads chosen with labels permuted",
)
CHOSEN = Claim(
    "the choice of heads matters",
    "margin with the heads kept less that with as many random heads, in nats, test",
    "all heads together lower accuracy",
    Bar(low=CHANGE),
    "each random set in place of those kept",
)
SINKS_MATTER = Claim(
    "it is the sinks that matter",
    "margin with sinks calibrated less that with as many other keys in the same heads, in nats, test",
    "not in the paper",
    Bar(low=CHANGE),
    "each draw of other keys in place of sinks",
)
FIRST_NEEDED = Claim(
    "the first sink is needed",
    "margin of the unchanged model less that with the first token calibrated too, in nats, test",
    "the first token's sink is to be kept",
    Bar(low=CHANGE),
    "the first token spared",
)
NO_MORE = Claim(
    "more weight on sinks harms",
    "margin of the unchanged model less that with weights on sinks enlarged by 1.6, in nats, test",
    "enlarging them lowers accuracy",
    Bar(low=CHANGE),
    "weights on sinks made less, in the same heads",
)


def settle(run: Run, found: Found, config: Config) -> None:
    """Judge all claims."""
    _settle_sinks(run, found, config)
    _settle_halves(run, found)
    vanilla, kept = found.vanilla, found.kept_margins
    right = f"right: unchanged {(vanilla > 0).mean():.3f}, heads kept {(kept > 0).mean():.3f}"
    run.settle(NO_HARM, _least_change(kept, vanilla), _least_change(found.first_too, vanilla), right)
    run.settle(GAIN, kept - vanilla, (found.shuffled - vanilla).mean(axis=-1), right)
    for claim, others in ((CHOSEN, found.random_heads), (SINKS_MATTER, found.random_columns)):
        swapped = [float(others[each].mean() - np.delete(others, each, axis=0).mean()) for each in range(len(others))]
        told = f"right: heads kept {(kept > 0).mean():.3f}, in place of them {(others > 0).mean():.3f}"
        run.settle(claim, kept - others.mean(axis=0), swapped, told)
    run.settle(FIRST_NEEDED, vanilla - found.first_too, float((vanilla - kept).mean()))
    run.settle(NO_MORE, vanilla - found.amplified, float((vanilla - kept).mean()))


def _settle_sinks(run: Run, found: Found, config: Config) -> None:
    _, _, heads, length = found.scores.shape
    first, behind = config.middle
    layers = found.sinks.sum(axis=-1).mean(axis=-1)
    # Row i puts 1 / (i + 1) on each key that it may read.
    columns = jnp.cumsum(1 / jnp.arange(1, length + 1)[::-1])[::-1]
    even = np.asarray(mean_column_weights(jnp.broadcast_to(columns, (heads, length)), length))
    run.settle(BEYOND, layers[first:behind].mean(axis=0), float(find_sinks(even, config.threshold).sum() / heads))
    rng = np.random.default_rng(config.seed)
    permuted = [rng.permutation(layers) for _ in range(PERMUTATIONS)]
    ratios = [float(each[behind:].mean() / max(each[first:behind].mean(), 1e-9)) for each in (layers, *permuted)]
    run.settle(MIDDLE, ratios[0], ratios[1:])


def _settle_halves(run: Run, found: Found) -> None:
    """Quarters of the prompts make halves in three ways; heads that have no sink anywhere change nothing."""
    changes = (found.alone - found.unchanged)[found.has_sinks]
    quarters = [quarter.mean(axis=-1) for quarter in np.array_split(changes, 4, axis=-1)]
    rng = np.random.default_rng(0)
    measured, control = [], []
    for one, other, *rest in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)):
        halves = quarters[one] + quarters[other], quarters[rest[0]] + quarters[rest[1]]
        measured.append(_rank_correlation(*halves))
        control.append(_rank_correlation(halves[0], rng.permutation(halves[1])))
    run.settle(REPEATS, measured, control)


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def _least_change(one: np.ndarray, other: np.ndarray) -> float:
    """The lower end of the interval of the difference of accuracies."""
    right = (jnp.asarray(each > 0, jnp.float32) for each in (one, other))
    return paired_bootstrap(jax.random.key(0), *right, level=0.9).low
