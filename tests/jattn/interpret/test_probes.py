"""Probes against closed forms in float64 and scikit-learn; leaks that grouped splits stop; labels at random; directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score

from jattn.interpret import (
    PENALTIES,
    control_labels,
    fit_probe,
    group_folds,
    over_groups,
    probe,
    selectivity,
    shuffle_among_groups,
)

KEY = jax.random.key(0)
FOLDS, CLASSES = 4, 2


def clouds(rng: np.random.Generator, examples: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes about centres of their own, features of other sizes and far from 0."""
    labels = rng.integers(0, classes, examples)
    centres = rng.normal(size=(classes, width))
    features = (centres[labels] + rng.normal(size=(examples, width))) * np.exp(rng.normal(size=width)) + 5
    return features, labels


def standardised(features: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return (features - features[kept].mean(axis=0)) / features[kept].std(axis=0)


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_a_probe_is_that_of_scikit_learn(kind, penalty) -> None:
    rng = np.random.default_rng(1)
    features, labels = clouds(rng, 90, 4, 3)
    kept = np.arange(90) < 60
    features[:, 3] = 2.0  # a feature that tells nothing
    given = [jnp.asarray(each) for each in (features, labels)]
    found = fit_probe(*given, penalty, classes=3, kind=kind, trained_on=jnp.asarray(kept))
    told = np.asarray(found(jnp.asarray(features)))
    standard = standardised(features[:, :3], kept)
    if kind == "ridge":
        model = Ridge(alpha=penalty * kept.sum()).fit(standard[kept], np.eye(3)[labels[kept]])
        np.testing.assert_allclose(told, model.predict(standard), atol=2e-5)
    else:
        model = LogisticRegression(C=1 / (penalty * kept.sum()), tol=1e-8, max_iter=1000).fit(
            standard[kept], labels[kept]
        )
        chances = jax.nn.softmax(found(jnp.asarray(features)), axis=-1)
        np.testing.assert_allclose(chances, model.predict_proba(standard), atol=2e-3)
    assert np.abs(np.asarray(found.weights)[3]).max() == 0


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
    labels = rng.integers(0, CLASSES, 80)
    strength = np.array([0.0, 0.5, 1.5])  # of three sites
    features = rng.normal(size=(3, 80, 6)) + 2
    features[:, :, 0] += strength[:, None] * labels
    fold = np.asarray(group_folds(KEY, np.arange(80) // 4, FOLDS))
    found = probe(jnp.asarray(features), jnp.asarray(labels), jnp.asarray(fold), folds=FOLDS, classes=CLASSES)
    for site in range(3):
        accuracy, chosen = nested(features[site], labels, fold)
        np.testing.assert_allclose(found.penalties[site], chosen)
        np.testing.assert_allclose(found.accuracy[site], accuracy, atol=1e-6)
    sizes = np.bincount(fold)
    np.testing.assert_allclose(found.right.mean(axis=1), found.accuracy @ sizes / sizes.sum(), atol=1e-6)


def test_what_is_tested_changes_neither_probe_nor_penalty() -> None:
    rng = np.random.default_rng(3)
    features, labels = clouds(rng, 60, 5, 2)
    fold = np.arange(60) % FOLDS
    tested = fold == 1
    other = np.where(tested[:, None], rng.normal(size=features.shape), features)
    flipped = np.where(tested, 1 - labels, labels)
    one, two = (
        probe(jnp.asarray(x[None]), jnp.asarray(y), jnp.asarray(fold), folds=FOLDS, classes=CLASSES)
        for x, y in ((features, labels), (other, flipped))
    )
    assert one.penalties[0, 1] == two.penalties[0, 1]
    np.testing.assert_array_equal(one.probes.weights[0, 1], two.probes.weights[0, 1])
    assert not np.array_equal(one.probes.weights[0, 0], two.probes.weights[0, 0])


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


SITES, GROUPS, EACH = 12, 60, 6


@pytest.fixture(scope="module")
def of_groups() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that tell the group and nothing else, and labels that groups have at random, half of them each."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(GROUPS), EACH)
    labels = rng.permutation(np.arange(GROUPS) % 2)[groups]
    features = rng.normal(size=(SITES, GROUPS, 24))[:, groups] + 0.1 * rng.normal(size=(SITES, len(groups), 24))
    return features, labels, groups


def test_groups_in_training_and_in_testing_leak(of_groups) -> None:
    features, labels, groups = (jnp.asarray(each) for each in of_groups)
    split = group_folds(KEY, np.asarray(groups)), group_folds(KEY, np.arange(len(groups)))
    grouped, ungrouped = (probe(features, labels, each, folds=5, classes=2).right.mean() for each in split)
    assert ungrouped > 0.75
    # Sites are drawn alone: of 720 groups, the standard error is 0.02; other folds' labels differ a little from a fold's.
    assert 0.42 < grouped < 0.55


def test_selectivity_is_nothing_where_features_tell_groups_alone(of_groups) -> None:
    found = selectivity(KEY, jnp.asarray(of_groups[0]), *of_groups[1:], shuffles=2, penalties=(1e-2, 1.0))
    for each in (found.accuracy, found.control):
        assert 0.42 < each.mean.mean() < 0.55
    assert ((found.selectivity.low < 0) & (found.selectivity.high > 0)).mean() > 0.7
    np.testing.assert_allclose(found.selectivity.mean, found.accuracy.mean - found.control.mean, atol=1e-6)
    assert found.shuffled.accuracy.shape == (2, SITES, 5)


def test_a_planted_direction_is_found_and_memory_is_told_from_it() -> None:
    rng = np.random.default_rng(6)
    examples, width = 400, 16
    groups, types = np.arange(examples) // 8, rng.integers(0, 10, examples)
    labels = rng.integers(0, 2, examples)
    direction = rng.normal(size=width)
    direction /= np.linalg.norm(direction)
    noise = rng.normal(size=(2, examples, width))
    noise[1] += 3 * np.eye(10, width)[types]  # the second site tells types as well
    features = noise.copy()
    features[1] += 4 * (labels[:, None] - 0.5) * direction
    by_group = selectivity(KEY, jnp.asarray(features), labels, groups, shuffles=2)
    by_type = selectivity(KEY, jnp.asarray(features), labels, groups, types=types, shuffles=2)
    assert by_group.accuracy.low[1] > 0.9
    assert by_group.selectivity.low[1] > 0.3
    assert by_group.accuracy.low[0] < 0.5 < by_group.accuracy.high[0] + 0.03
    np.testing.assert_allclose(by_group.control.mean, 0.5, atol=0.1)
    assert by_type.control.mean[1] > 0.8  # types are learned by heart
    np.testing.assert_allclose(by_type.control.mean[0], 0.5, atol=0.15)
    weights = np.asarray(by_group.task.probes.weights)[1]
    found = weights[..., 1] - weights[..., 0]
    cosines = found @ direction / np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.9


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
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(100), 5)
    values = rng.normal(size=(2, 100))[:, groups]
    found = over_groups(KEY, jnp.asarray(values), groups, level=0.9)
    width = 2 * 1.645 * values[:, ::5].std(axis=1) / 10
    np.testing.assert_allclose(found.high - found.low, width, rtol=0.1)
    np.testing.assert_allclose(found.mean, values.mean(axis=1), atol=1e-6)


FEATURES, LABELS = jnp.zeros((1, 6, 2)), jnp.arange(6) % 2


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: group_folds(KEY, np.arange(6), 2), "folds must be at least 3 .* got 2"),
        (lambda: group_folds(KEY, np.arange(6) // 2, 4), "number of groups, 3; got 4"),
        (lambda: probe(FEATURES[0], LABELS, LABELS, folds=3, classes=2), r"features must be \(sites"),
        (lambda: probe(FEATURES, LABELS, LABELS[:5], folds=3, classes=2), "labels and fold"),
        (lambda: probe(FEATURES, LABELS, LABELS, folds=2, classes=2), "folds must be at least 3"),
        (lambda: probe(FEATURES, LABELS, LABELS, folds=3, classes=2, kind="svm"), "kind must be ridge or logistic"),
        (lambda: fit_probe(FEATURES[0], LABELS, 1.0, classes=2, kind="svm"), "got 'mlp'"),
        (lambda: selectivity(KEY, FEATURES, np.zeros(6, int), np.arange(6)), "several classes from 0 on; got 0 to 0"),
        (lambda: selectivity(KEY, FEATURES, LABELS - 1, np.arange(6)), "got -1 to 0"),
        (lambda: selectivity(KEY, FEATURES, LABELS, np.arange(6), shuffles=0), "shuffles must be at least 1; got 0"),
        (lambda: over_groups(KEY, jnp.zeros((2, 5)), np.arange(6)), "of the same examples"),
        (lambda: over_groups(KEY, jnp.zeros(6), np.arange(6), level=2), "level must be between 0 and 1; got 2"),
    ],
)
def test_what_cannot_be_probed_is_refused(call, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        call()
