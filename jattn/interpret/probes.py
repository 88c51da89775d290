"""Linear probes: what can be read off captured features, of groups never trained on, against labels put at random.

A probe is a linear classifier of features standardised by its training examples. With p its penalty, it minimises

    ridge:     mean ½ ‖one-hot label - W x - b‖² + p/2 ‖W‖²,  in closed form
    logistic:  mean cross-entropy + p/2 ‖W‖²,                 by L-BFGS

over its training examples. Groups are what examples share that a probe must not learn by heart, such as the text they
are of: no group is both trained on and tested on, nor both in training and in validation where a penalty is chosen.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

Kind = Literal["ridge", "logistic"]
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Weakest first."""
STEPS = 200
"""Of L-BFGS at most; it stops where the gradient's norm is 1e-4."""


class Probe(NamedTuple):
    """Scores of classes, of features as they were captured: features @ weights + bias."""

    weights: Float[Array, "*probes features classes"]
    bias: Float[Array, "*probes classes"]

    def __call__(self, features: Float[Array, "examples features"]) -> Float[Array, "examples classes"]:
        return features @ self.weights + self.bias


class Probed(NamedTuple):
    """What probes found at every site, of every task where there are several.

    Attributes:
      probes: one for each site and fold, trained on the other folds.
      penalties: of these, each chosen on folds that it was not tested on.
      right: whether each example's label is found by the probe that was not trained on its group.
      accuracy: share of those in each fold.
    """

    probes: Probe
    penalties: Float[Array, "*tasks sites folds"]
    right: Bool[Array, "*tasks sites examples"]
    accuracy: Float[Array, "*tasks sites folds"]


class Interval(NamedTuple):
    """Means and their intervals."""

    mean: Float[np.ndarray, "*rows"]
    low: Float[np.ndarray, "*rows"]
    high: Float[np.ndarray, "*rows"]


class Selectivity(NamedTuple):
    """Accuracies at every site, those of the control task, and what the first are above the second.

    Attributes:
      accuracy, control, selectivity: over all examples, with intervals over groups.
      task: probes of the labels as they are.
      shuffled: of every control, probes of its labels.
    """

    accuracy: Interval
    control: Interval
    selectivity: Interval
    task: Probed
    shuffled: Probed


@partial(jax.jit, static_argnames=("classes", "kind"))
def fit_probe(
    features: Float[Array, "examples features"],
    labels: Int[Array, " examples"],
    penalty: Float[Array, ""] | float,
    *,
    classes: int,
    kind: Kind = "ridge",
    trained_on: Bool[Array, " examples"] | None = None,
) -> Probe:
    """One probe, with one penalty.

    Args:
      labels: 0 to classes - 1.
      trained_on: which examples; all of them by default. The others change nothing.

    Raises:
      ValueError: an unknown kind.
    """
    every = jnp.ones(len(features), bool) if trained_on is None else trained_on
    return _trainer(jnp.asarray(features, jnp.float32), labels, every, classes, kind)(jnp.asarray(penalty))


def group_folds(
    key: Key[Array, ""], groups: Int[Array | np.ndarray, " examples"], folds: int = 5
) -> Int[Array, " examples"]:
    """The fold that each example is tested in: groups stay whole, and folds are as large as that lets them be.

    Groups in random order, larger before smaller, each go to the fold that has the fewest examples so far.

    Raises:
      ValueError: fewer than 3 folds, as one is for testing and one for validation; or fewer groups than folds.
    """
    _, of_group, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if not 3 <= folds <= len(sizes):
        raise ValueError(f"folds must be at least 3 and at most the number of groups, {len(sizes)}; got {folds}")
    order = np.asarray(jax.random.permutation(key, len(sizes)))
    filled, fold = np.zeros(folds, int), np.zeros(len(sizes), int)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    return jnp.asarray(fold[of_group])


@partial(jax.jit, static_argnames=("folds", "classes", "kind", "penalties"))
def probe(
    features: Float[Array, "sites examples features"],
    labels: Int[Array, "*tasks examples"],
    fold: Int[Array, " examples"],
    *,
    folds: int,
    classes: int,
    kind: Kind = "ridge",
    penalties: tuple[float, ...] = PENALTIES,
) -> Probed:
    """Probe every site, all in one program: nested cross-validation.

    The penalty of the probe that a fold tests is the one whose probes, trained on all other folds but one, find most
    labels of that one, in turn; of several, the strongest. Then the probe is trained on all other folds.

    Args:
      labels: 0 to classes - 1; of one task, or of several, (tasks, examples).
      fold: see `group_folds`; 0 to folds - 1, none empty.
      penalties: to choose from, weakest first.

    Raises:
      ValueError: features, labels and fold that are not of the same examples, fewer than 3 folds, or an unknown kind.
    """
    if features.ndim != 3 or labels.ndim > 2 or not features.shape[1:2] == fold.shape == labels.shape[-1:]:
        shapes = f"{features.shape}, {labels.shape} and {fold.shape}"
        raise ValueError(f"features must be (sites, examples, features), labels and fold of the examples; got {shapes}")
    if folds < 3:
        raise ValueError(f"folds must be at least 3, one for testing and one for validation; got {folds}")
    ascending = jnp.asarray(penalties, jnp.float32)
    one_site = partial(_probe_site, folds=folds, classes=classes, kind=kind)
    every_site = jax.vmap(one_site, in_axes=(0, None, None, None))
    every_task = jax.vmap(every_site, in_axes=(None, 0, None, None)) if labels.ndim == 2 else every_site
    return every_task(features, labels, fold, ascending)


def shuffle_among_groups(
    key: Key[Array, ""], labels: Int[Array | np.ndarray, " examples"], groups: Int[Array | np.ndarray, " examples"]
) -> Int[Array, " examples"]:
    """Labels put at random: where each group has one label, whole groups swap theirs; else all examples do.

    Groups that swap labels leave to be learned what is of groups; with groups split, that is of no use in testing, so
    that accuracy falls to chance. If it does not, something leaks.
    """
    values, (_, first, of_group) = np.asarray(labels), np.unique(groups, return_index=True, return_inverse=True)
    of_groups = values[first]
    if (of_groups[of_group] == values).all():
        return jax.random.permutation(key, jnp.asarray(of_groups))[of_group]
    return jax.random.permutation(key, jnp.asarray(values))


def control_labels(
    key: Key[Array, ""], labels: Int[Array | np.ndarray, " examples"], types: Int[Array | np.ndarray, " examples"]
) -> Int[Array, " examples"]:
    """The control task of Hewitt and Liang 2019 (EMNLP-IJCNLP, arXiv 1909.03368), which memory alone solves.

    Each type, there of words, has one label for all its examples, drawn from how frequent the labels are, independently
    of the other types. Types that are in training and in testing can be learned by heart; how well tells how much of
    an accuracy is the probe's own.
    """
    kinds, of_type = np.unique(types, return_inverse=True)
    return jax.random.choice(key, jnp.asarray(labels), (len(kinds),))[of_type]


def over_groups(
    key: Key[Array, ""],
    values: Float[np.ndarray, "*rows examples"],
    groups: Int[Array | np.ndarray, " examples"],
    *,
    level: float = 0.95,
    draws: int = 2000,
) -> Interval:
    """Mean over examples, with the percentile interval of groups drawn anew, whole.

    Raises:
      ValueError: values of other examples than groups, or a level outside of (0, 1).
    """
    if values.shape[-1:] != np.shape(groups):
        raise ValueError(f"values and groups must be of the same examples; got {values.shape} and {np.shape(groups)}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1; got {level}")
    _, of_group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    known = np.asarray(values, np.float64)
    sums = np.stack([known[..., of_group == group].sum(axis=-1) for group in range(len(sizes))], axis=-1)
    drawn = np.asarray(jax.random.randint(key, (draws, len(sizes)), 0, len(sizes)))
    times = np.stack([np.bincount(each, minlength=len(sizes)) for each in drawn])
    low, high = np.quantile(sums @ times.T / (times @ sizes), [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return Interval(known.mean(axis=-1), low, high)


def selectivity(
    key: Key[Array, ""],
    features: Float[Array, "sites examples features"],
    labels: Int[Array | np.ndarray, " examples"],
    groups: Int[Array | np.ndarray, " examples"],
    *,
    types: Int[Array | np.ndarray, " examples"] | None = None,
    folds: int = 5,
    shuffles: int = 5,
    kind: Kind = "ridge",
    penalties: tuple[float, ...] = PENALTIES,
    level: float = 0.95,
) -> Selectivity:
    """Accuracy at every site less that of a control task (Hewitt and Liang 2019, arXiv 1909.03368).

    Labels and controls, of all sites, are probed by one program.

    Args:
      labels: 0 to the largest.
      types: the control task is `control_labels` of these; without them it is `shuffle_among_groups`.
      shuffles: controls, of which the mean is taken.
      level: of the intervals, over groups; of what the draw of training examples changes they know nothing.

    Raises:
      ValueError: labels of one kind or below 0, no shuffle, and see `group_folds`, `probe` and `over_groups`.
    """
    known = np.asarray(labels)
    if known.min() < 0 or known.min() == known.max():
        raise ValueError(f"labels must be of several classes from 0 on; got {known.min()} to {known.max()}")
    if shuffles < 1:
        raise ValueError(f"shuffles must be at least 1; got {shuffles}")
    split, draw, *each = jax.random.split(key, shuffles + 2)
    control = shuffle_among_groups if types is None else control_labels
    controls = [control(one, known, groups if types is None else types) for one in each]
    together = jnp.stack([jnp.asarray(known), *controls])
    fold = group_folds(split, groups, folds)
    classes = int(known.max()) + 1
    found = probe(features, together, fold, folds=folds, classes=classes, kind=kind, penalties=penalties)
    task, shuffled = (jax.tree.map(lambda leaf, part=part: leaf[part], found) for part in (0, slice(1, None)))
    accuracy, chance = np.asarray(task.right, float), np.asarray(shuffled.right, float).mean(axis=0)
    above = over_groups(draw, np.stack([accuracy, chance, accuracy - chance]), groups, level=level)
    means = (Interval(*each) for each in zip(*above, strict=True))
    return Selectivity(*means, task=task, shuffled=shuffled)


def _probe_site(
    features: Array, labels: Array, fold: Array, penalties: Array, folds: int, classes: int, kind: Kind
) -> Probed:
    features = features.astype(jnp.float32)

    def find(trained_on: Array) -> Callable[[Array], tuple[Probe, Array]]:
        train = _trainer(features, labels, trained_on, classes, kind)

        def right(penalty: Array) -> tuple[Probe, Array]:
            found = train(penalty)
            return found, found(features).argmax(axis=-1) == labels

        return right

    def validate(pair: Array) -> Array:
        """Of probes trained on neither of two folds, answers that are right in one, where the other is for testing."""
        one, other = fold == pair[0], fold == pair[1]
        right = jax.lax.map(lambda penalty: find(~one & ~other)(penalty)[1], penalties)
        counts = jnp.stack([(right & other).sum(axis=1), (right & one).sum(axis=1)])
        return jnp.zeros((folds, len(penalties)), counts.dtype).at[pair].add(counts)

    counts = jax.lax.map(validate, jnp.array(list(combinations(range(folds), 2)))).sum(axis=0)
    chosen = penalties[::-1][counts[:, ::-1].argmax(axis=1)]
    probes, right = jax.lax.map(lambda each: find(fold != each[0])(each[1]), (jnp.arange(folds), chosen))
    tested = right[fold, jnp.arange(len(fold))]
    inside = fold == jnp.arange(folds)[:, None]
    return Probed(probes, chosen, tested, (tested & inside).sum(axis=1) / inside.sum(axis=1))


def _trainer(features: Array, labels: Array, trained_on: Array, classes: int, kind: Kind) -> Callable[[Array], Probe]:
    """Penalty -> probe: what all penalties share is computed once."""
    share = trained_on / trained_on.sum()
    mean = share @ features
    deviation = jnp.sqrt(share @ (features - mean) ** 2)
    # What is constant up to rounding is not blown up.
    scale = jnp.where(deviation > 1e-6 * jnp.abs(mean), deviation, 1)
    standard = (features - mean) / scale
    targets = jax.nn.one_hot(labels, classes)
    if kind == "ridge":
        train = _ridge(standard, targets, share)
    elif kind == "logistic":
        train = _logistic(standard, targets, share)
    else:
        raise ValueError(f"kind must be ridge or logistic; got {kind!r}")

    def as_captured(penalty: Array) -> Probe:
        found = train(penalty)
        weights = found.weights / scale[:, None]
        return Probe(weights, found.bias - mean @ weights)

    return as_captured


def _ridge(standard: Array, targets: Array, share: Array) -> Callable[[Array], Probe]:
    mean = share @ targets
    weighted = standard * share[:, None]
    gram, reads = weighted.T @ standard, weighted.T @ (targets - mean)

    def solve(penalty: Array) -> Probe:
        return Probe(jax.scipy.linalg.solve(gram + penalty * jnp.eye(len(gram)), reads, assume_a="pos"), mean)

    return solve


def _logistic(standard: Array, targets: Array, share: Array) -> Callable[[Array], Probe]:
    def objective(found: Probe, penalty: Array) -> Array:
        nats = optax.softmax_cross_entropy(found(standard), targets)
        return share @ nats + penalty / 2 * (found.weights**2).sum()

    start = Probe(jnp.zeros((standard.shape[1], targets.shape[1])), jnp.zeros(targets.shape[1]))
    solver = jaxopt.LBFGS(objective, maxiter=STEPS, tol=1e-4, implicit_diff=False)
    return lambda penalty: solver.run(start, penalty).params
