"""What the papers claim, with the bars set before anything was run, and how each is measured.

Merullo, Eickhoff and Pavlick 2024, arXiv 2310.08744, of GPT-2 Medium; Wang et al. 2022, arXiv 2211.00593, of GPT-2
small. On this model the names' margin, colours at chance and the repair by head 23.3 were known from a pilot on other
prompts, which the bars of these are from.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from experiments.circuit_reuse import constructed
from experiments.circuit_reuse.config import COMPARED, FIRST
from experiments.circuit_reuse.pretrained import Answered, Found, Reads, Repair, top
from jattn.interpret import overlap
from jattn.runs import Bar, Claim, Run

READS = 0.1
"""Least weight on a word of a head that is said to read it."""

BY_CONSTRUCTION = Claim(
    "path patching finds a circuit set by hand",
    "largest difference of effects, on the output and through the mover's queries, from those by construction",
    "the circuit of Wang et al.",
    Bar(high=0.01),
    "patched with nothing else frozen",
)
KNOWS_NAMES = Claim(
    "names are answered",
    "share of prompts with a higher logit of who is given to than of who gives",
    "mean margin 3.56 in GPT-2 small",
    Bar(low=0.9),
    "their twins, whose answer is the other",
)
KNOWS_COLOURS = Claim(
    "colours are answered",
    "share of prompts whose right colour is the likeliest of the three in the prompt; chance 0.33",
    "49.6 %, of all tokens",
    Bar(low=0.4),
    "the twin's colour taken for the right one",
)
FEW = Claim(
    "few heads carry the answer",
    "share of all |effects| in the 5 % of heads that are largest on the other half of the prompts",
    "2 % of heads are taken at each stage",
    Bar(low=0.8),
    "as many random heads",
)
STABLE = Claim(
    "they are the same for other prompts",
    "rank correlation of effects from two halves of the prompts, the 30 largest",
    "not in the paper",
    Bar(low=0.9),
    "heads permuted",
)
MOVERS = Claim(
    "movers read the answer",
    "of the six largest heads, how many read the right name at least twice as much as the other's two places",
    "15.14, 16.15, 17.4, 18.5 and 19.15 attend to the answer",
    Bar(low=2.0),
    "the same names in the twins, where the other is right",
)
STEERED = Claim(
    "heads that steer them read the name that is twice there",
    "of the six largest on their queries, how many read it at least twice as much per place as the other",
    "12.3, 13.4 and 13.13 attend to it",
    Bar(low=2.0),
    "the same names in the twins, where the other is twice there",
)
ALONE = Claim(
    "the circuit alone keeps the answer",
    "share of the mean margin that is left where all other heads have their mean in the last row; held-out prompts",
    "87 % in GPT-2 small",
    Bar(low=0.8),
    "as many random heads in place of the circuit",
)
SHARED = Claim(
    "the tasks share most heads",
    "share of the 5 % of heads largest for names that are among the 5 % for colours",
    "25 of 32 heads, 78 %",
    Bar(low=0.5),
    "as many random heads for colours",
)
BEYOND_CHANCE = Claim(
    "they share more than chance gives",
    "probability of as many shared heads by chance",
    "not in the paper",
    Bar(high=0.01),
    "as many random heads for colours",
)
BEYOND_LAYERS = Claim(
    "and more than their layers give",
    "probability of as many shared heads by chance within each layer",
    "not in the paper",
    Bar(high=0.01),
    "heads for colours permuted within layers",
)
REPAIRS = Claim(
    "a head of names repairs colours",
    "gain in colours right among three where it reads the two wrong ones; held-out prompts",
    "right of all tokens 49.6 to 93.7 % by four heads, 81.5 % by the inhibition heads",
    Bar(low=0.2),
    "each of five other heads of its layer instead",
)
NOT_BY_READING = Claim(
    "reading the name is not enough",
    "the same",
    "not in the paper",
    Bar(low=0.2),
    "each of five heads instead that read the wrong name most, of those that do not matter for names",
)
LOWERS = Claim(
    "it lowers what it reads",
    "change in colours right among three where it reads the right one",
    "not in the paper",
    Bar(high=-0.1),
    "where it reads everything alike",
)
OF_ALL = Claim(
    "repaired answers are the likeliest of all tokens",
    "gain in colours right among all tokens where it reads the two wrong ones",
    "49.6 to 93.7 % by four heads",
    Bar(low=0.1),
    "each of five other heads of its layer instead",
)
NONE_LOST = Claim(
    "what was right stays right",
    "share of prompts right among three before that are wrong where it reads the two wrong ones",
    "none",
    Bar(high=0.05),
    "each of five other heads of its layer instead",
)


def settle_constructed(run: Run, found: constructed.Effects) -> None:
    """Judge the claim on the network whose weights are set by hand."""
    frozen = max(np.abs(found.direct - constructed.DIRECT).max(), np.abs(found.steering - constructed.STEERING).max())
    run.settle(BY_CONSTRUCTION, float(frozen), float(np.abs(found.unfrozen - constructed.DIRECT).max()))


def settle_pretrained(run: Run, found: Found, seed: int) -> None:
    """Judge the claims on the published model."""
    _settle_search(run, found, seed)
    _settle_overlap(run, found, seed)
    _settle_repair(run, found.repair)


def _settle_search(run: Run, found: Found, seed: int) -> None:
    rng, names = np.random.default_rng(seed), found.names
    run.settle(KNOWS_NAMES, (names.clean > 0).astype(float), float((names.corrupt > 0).mean()))
    run.settle(KNOWS_COLOURS, found.repair.plain.right.astype(float), float((found.repair.plain.choice == 1).mean()))
    half = len(names.clean) // 2
    one, other = (names.effects(which) for which in (slice(half), slice(half, None)))
    count = int(found.best.sum())
    shares = [_share(other, top(one, count)), _share(one, top(other, count))]
    drawn = [_share(names.effects(), _permuted(rng, found.best)) for _ in range(5)]
    run.settle(FEW, float(np.mean(shares)), drawn)
    most = np.flatnonzero(top(names.effects(), COMPARED))
    again, permuted = (
        rank_correlation(one.flat[most], each) for each in (other.flat[most], rng.permutation(other.flat[most]))
    )
    run.settle(STABLE, again, permuted)
    first = top(names.effects(), FIRST)
    told = f"the six are {', '.join(heads(first))}"
    moving, in_twins = (float((each & first).sum()) for each in _movers(names.reads))
    run.settle(MOVERS, moving, in_twins, told)
    steers = top(found.steering, FIRST)
    told = f"the six are {', '.join(heads(steers))}"
    inhibiting, in_twins = (float((each & steers).sum()) for each in _inhibitors(names.reads))
    run.settle(STEERED, inhibiting, in_twins, told)
    run.settle(ALONE, found.kept, found.kept_random)


def _settle_overlap(run: Run, found: Found, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names, colours = found.best, found.best_for_colours
    drawn = [_permuted(rng, colours) for _ in range(5)]
    within = [rng.permuted(colours, axis=1) for _ in range(5)]
    flips = [(task.clean - task.corrupt).mean() for task in (found.colours, found.names)]
    told = f"margins of colours fall by {flips[0]:.2f} in twins, of names by {flips[1]:.2f}"
    run.settle(SHARED, _shared(names, colours), [_shared(names, each) for each in drawn], told)
    run.settle(BEYOND_CHANCE, overlap(names, colours).p_value, [overlap(names, each).p_value for each in drawn], told)
    inside = [overlap(names, each, same_layers=True).p_value for each in (colours, *within)]
    run.settle(BEYOND_LAYERS, inside[0], inside[1:], told)


def _settle_repair(run: Run, found: Repair) -> None:
    others, readers = list(found.others.values()), list(found.readers.values())
    gain = _gain(found.plain, found.repaired)
    told = f"the head is {found.head[0]}.{found.head[1]}"
    run.settle(REPAIRS, gain, [float(_gain(found.plain, each).mean()) for each in others], told)
    run.settle(NOT_BY_READING, gain, [float(_gain(found.plain, each).mean()) for each in readers], told)
    run.settle(LOWERS, _gain(found.plain, found.promoted), float(_gain(found.plain, found.uniform).mean()), told)
    run.settle(
        OF_ALL,
        found.repaired.among_all.astype(float) - found.plain.among_all,
        [float(each.among_all.mean() - found.plain.among_all.mean()) for each in others],
        told,
    )
    right = found.plain.right
    lost, lost_by_others = 1.0 - found.repaired.right[right], [float((~each.right[right]).mean()) for each in others]
    run.settle(NONE_LOST, lost, lost_by_others, told)


def heads(mask: Bool[np.ndarray, "layers heads"]) -> list[str]:
    """Their names, layer.head."""
    return [f"{layer}.{head}" for layer, head in np.argwhere(mask).tolist()]


def rank_correlation(one: Float[np.ndarray, " heads"], other: Float[np.ndarray, " heads"]) -> float:
    """Spearman's."""
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def _share(effects: Float[np.ndarray, "layers heads"], which: Bool[np.ndarray, "layers heads"]) -> float:
    return float(np.abs(effects)[which].sum() / np.abs(effects).sum())


def _shared(one: Bool[np.ndarray, "layers heads"], other: Bool[np.ndarray, "layers heads"]) -> float:
    return float((one & other).sum() / one.sum())


def _permuted(rng: np.random.Generator, mask: Bool[np.ndarray, "layers heads"]) -> Bool[np.ndarray, "layers heads"]:
    return rng.permutation(mask.ravel()).reshape(mask.shape)


def _gain(before: Answered, after: Answered) -> Float[np.ndarray, " prompts"]:
    return after.right.astype(float) - before.right


def _movers(reads: Reads) -> tuple[Bool[np.ndarray, "layers heads"], Bool[np.ndarray, "layers heads"]]:
    """Heads that read the right name at least twice as much as the other in all its places; and in twins."""
    return (
        (reads.right >= 2 * reads.wrong) & (reads.right >= READS),
        (reads.right_in_twin >= 2 * reads.wrong_in_twin) & (reads.right_in_twin >= READS),
    )


def _inhibitors(reads: Reads) -> tuple[Bool[np.ndarray, "layers heads"], Bool[np.ndarray, "layers heads"]]:
    """Heads that read the wrong name, at its two places, at least twice as much per place; and in twins."""
    return (
        (reads.wrong >= 4 * reads.right) & (reads.wrong >= READS),
        (reads.wrong_in_twin >= 4 * reads.right_in_twin) & (reads.wrong_in_twin >= READS),
    )
