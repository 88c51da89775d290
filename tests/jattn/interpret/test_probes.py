"""Probes against scikit-learn; leaks that grouped splits stop; labels at random; a planted direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score

from jattn.interpret import (
    PENALTIES,
    Probed,
    control_labels,
    fit_probe,
    group_folds,
    over_groups,
    probe,
    selectivity,
    shuffle_among_groups,
)

KEY = jax.random.key(0)
SITES, GROUPS, EACH, WIDTH, FOLDS, CLASSES = 8, 40, 6, 32, 4, 2
"""Of all data that are probed, so that they are by one program."""
OF_GROUP = np.repeat(np.arange(GROUPS), EACH)
EXAMPLES = GROUPS * EACH


def probed(features: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> Probed:
    given = (jnp.asarray(each) for each in (features, np.stack([labels, 1 - labels, labels]), fold))
    found = probe(*given, folds=FOLDS, classes=CLASSES)
    return jax.tree.map(lambda leaf: leaf[0], found)


def standardised(features: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return (features - features[kept].mean(axis=0)) / features[kept].std(axis=0)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_a_probe_is_that_of_scikit_learn(kind) -> None:
    rng = np.random.default_rng(1)
    labels, kept = rng.integers(0, 3, 90), np.arange(90) < 60
    features = rng.normal(size=(3, 4))[labels] + rng.normal(size=(90, 4)) * [0.1, 1, 3, 1] + 5
    features[:, 3] = 2.0  # a feature that tells nothing
    standard = standardised(features[:, :3], kept)
    given = [jnp.asarray(each) for each in (features, labels)]
    for penalty in (1e-3, 1.0):
        found = fit_probe(*given, penalty, classes=3, kind=kind, trained_on=jnp.asarray(kept))
        told = np.asarray(found(given[0]))
        if kind == "ridge":
            model = Ridge(alpha=penalty * kept.sum()).fit(standard[kept], np.eye(3)[labels[kept]])
            np.testing.assert_allclose(told, model.predict(standard), atol=2e-5)
        else:
            model = LogisticRegression(C=1 / (penalty * kept.sum()), tol=1e-8, max_iter=1000)
            chances = model.fit(standard[kept], labels[kept]).predict_proba(standard)
            np.testing.assert_allclose(softmax(told, axis=1), chances, atol=2e-3)
        assert np.abs(np.asarray(found.weights)[3]).max() < 1e-6


def nested(features: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same choice of penalties with scikit-learn's ridge, fold by fold."""
    accuracy, chosen = [], []

    def right(test: np.ndarray, train: np.ndarray, penalty: float) -> int:
        standard = standardised(features, train)
        model = Ridge(alpha=penalty * train.sum()).fit(standard[train], np.eye(CLASSES)[labels[train]])
        said = model.predict(standard[test]).argmax(axis=1)
        return int(accuracy_score(labels[test], said, normalize=False))

    for tested in range(FOLDS):
        others = [each for each in range(FOLDS) if each != tested]
        counts = [
            sum(right(fold == inner, (fold != inner) & (fold != tested), penalty) for inner in others)
            for penalty in PENALTIES
        ]
        best = max(range(len(PENALTIES)), key=lambda place, counts=counts: (counts[place], place))
        chosen.append(PENALTIES[best])
        accuracy.append(right(fold == tested, fold != tested, PENALTIES[best]) / (fold == tested).sum())
    return np.array(accuracy), np.array(chosen)


def test_penalties_are_chosen_on_inner_folds_at_every_site() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, CLASSES, EXAMPLES)
    features = rng.normal(size=(SITES, EXAMPLES, WIDTH)) + 2
    features[:, :, 0] += np.linspace(0, 2, SITES)[:, None] * labels
    fold = np.asarray(group_folds(KEY, OF_GROUP, FOLDS))
    found = probed(features, labels, fold)
    for site in (0, 3, 7):
        accuracy, chosen = nested(features[site], labels, fold)
        np.testing.assert_allclose(found.penalties[site], chosen)
        np.testing.assert_allclose(found.accuracy[site], accuracy, atol=1e-6)
    sizes = np.bincount(fold)
    np.testing.assert_allclose(found.right.mean(axis=1), found.accuracy @ sizes / sizes.sum(), atol=1e-6)


def test_what_is_tested_changes_neither_probe_nor_penalty() -> None:
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(SITES, EXAMPLES, WIDTH)), rng.integers(0, 2, EXAMPLES)
    fold = np.asarray(group_folds(KEY, OF_GROUP, FOLDS))
    tested = fold == 1
    other = np.where(tested[:, None], rng.normal(size=features.shape), features)
    one, two = (probed(x, y, fold) for x, y in ((features, labels), (other, np.where(tested, 1 - labels, labels))))
    np.testing.assert_array_equal(one.penalties[:, 1], two.penalties[:, 1])
    np.testing.assert_array_equal(one.probes.weights[:, 1], two.probes.weights[:, 1])
    assert not np.array_equal(one.probes.weights[:, 0], two.probes.weights[:, 0])


def test_groups_stay_whole_and_folds_alike_in_size() -> None:
    rng = np.random.default_rng(4)
    groups = rng.choice([7, -2, 40, 11, 5, 90, 23, 61], 300)
    fold = np.asarray(group_folds(KEY, groups, 3))
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups.tolist()))
    assert np.ptp(np.bincount(fold)) <= np.bincount(groups + 2).max()
    assert set(fold.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(fold, group_folds(KEY, groups, 3))
    equal = np.arange(120) // 10
    np.testing.assert_array_equal(np.bincount(group_folds(KEY, equal, 4)), [30] * 4)
    splits = {tuple(np.asarray(group_folds(jax.random.key(seed), equal, 4)).tolist()) for seed in range(4)}
    assert len(splits) == 4


def test_what_tells_groups_alone_leaks_unless_groups_are_split() -> None:
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.arange(GROUPS) % 2)[OF_GROUP]
    features = rng.normal(size=(SITES, GROUPS, WIDTH))[:, OF_GROUP]
    features += 0.3 * rng.normal(size=features.shape)
    assert probed(features, labels, group_folds(KEY, np.arange(EXAMPLES), FOLDS)).right.mean() > 0.75
    found = selectivity(KEY, jnp.asarray(features), labels, OF_GROUP, folds=FOLDS, shuffles=2)
    # A little below one half: what a fold has more of, the folds trained on have less of. For the control it is alike.
    for each in (found.accuracy, found.control):
        assert 0.35 < each.mean.mean() < 0.55
    assert abs(found.selectivity.mean.mean()) < 0.15
    np.testing.assert_allclose(found.selectivity.mean, found.accuracy.mean - found.control.mean, atol=1e-6)
    assert found.shuffled.accuracy.shape == (2, SITES, FOLDS)


def test_a_planted_direction_is_found_and_memory_is_told_from_it() -> None:
    rng = np.random.default_rng(6)
    labels, types = rng.integers(0, 2, EXAMPLES), rng.integers(0, 10, EXAMPLES)
    direction = rng.normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    features = rng.normal(size=(SITES, EXAMPLES, WIDTH))
    # Sites from the fourth on tell labels, and types as well.
    features[4:] += 3 * np.eye(10, WIDTH)[types] + 4 * (labels[:, None] - 0.5) * direction
    given = KEY, jnp.asarray(features), labels, OF_GROUP
    by_group = selectivity(*given, folds=FOLDS, shuffles=2)
    by_type = selectivity(*given, types=types, folds=FOLDS, shuffles=2)
    assert by_group.accuracy.low[4:].min() > 0.85
    assert by_group.selectivity.low[4:].min() > 0.3
    np.testing.assert_allclose(by_group.accuracy.mean[:4].mean(), 0.5, atol=0.06)
    np.testing.assert_allclose(by_group.control.mean, 0.5, atol=0.12)
    assert by_type.control.mean[4:].mean() > by_group.control.mean[4:].mean() + 0.15  # types are learned by heart
    weights = np.asarray(by_group.task.probes.weights)
    found = weights[..., 1] - weights[..., 0]
    # Fisher's discriminant: what types spread is read less. 180 examples know it to about 32/180 of its square.
    fisher = np.linalg.solve(np.eye(WIDTH) + np.cov(3 * np.eye(10, WIDTH)[types].T), direction)
    cosines = found @ fisher / np.linalg.norm(found, axis=-1) / np.linalg.norm(fisher)
    assert cosines[4:].min() > 0.8
    assert np.abs(cosines[:4]).max() < 0.5


def test_controls_keep_what_they_promise() -> None:
    groups = np.array([3, 3, 1, 1, 8, 8, 8, 5])
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    for seed in range(3):
        whole = np.asarray(shuffle_among_groups(jax.random.key(seed), labels, groups))
        assert all(len(set(whole[groups == group])) == 1 for group in groups)
        assert set(whole.tolist()) == {0, 1, 2, 3}
    mixed = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    assert sorted(np.asarray(shuffle_among_groups(KEY, mixed, groups)).tolist()) == sorted(mixed.tolist())
    skewed = np.array([0, 0, 0, 1] * 500)
    drawn = np.asarray(control_labels(KEY, skewed, np.arange(2000) // 2))
    assert (drawn[::2] == drawn[1::2]).all()
    assert drawn.mean() == pytest.approx(0.25, abs=0.05)


def test_intervals_are_over_groups() -> None:
    values = np.random.default_rng(7).normal(size=(2, 100)).repeat(5, axis=1)
    found = over_groups(KEY, values, np.repeat(np.arange(100), 5), level=0.9)
    width = 2 * 1.645 * values[:, ::5].std(axis=1) / 10
    np.testing.assert_allclose(found.high - found.low, width, rtol=0.1)
    np.testing.assert_allclose(found.mean, values.mean(axis=1), atol=1e-12)


FEATURES, LABELS = jnp.zeros((1, 6, 2)), jnp.arange(6) % 2


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: group_folds(KEY, np.arange(6), 2), "folds must be at least 3 .* got 2"),
        (lambda: group_folds(KEY, np.arange(6) // 2, 4), "number of groups, 3; got 4"),
        (lambda: probe(FEATURES, LABELS, LABELS, folds=2, classes=2), "folds must be at least 3"),
        (lambda: selectivity(KEY, FEATURES, np.zeros(6, int), np.arange(6)), "several classes from 0 on; got 0 to 0"),
        (lambda: selectivity(KEY, FEATURES, LABELS - 1, np.arange(6)), "got -1 to 0"),
        (lambda: selectivity(KEY, FEATURES, LABELS, np.arange(6), shuffles=0), "shuffles must be at least 1; got 0"),
        (lambda: over_groups(KEY, np.zeros(6), np.arange(6), level=2.0), r"level must be between 0 and 1; got 2.0"),
    ],
    ids=["two folds", "few groups", "two folds to probe", "one class", "below 0", "no shuffle", "level"],
)
def test_what_cannot_be_probed_is_refused(call, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        call()
