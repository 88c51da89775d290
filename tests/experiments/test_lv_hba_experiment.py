"""The toys' answers and inner solutions by their optimality conditions and by peers; planted claims; a small run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import LogisticRegression

from experiments.lv_hba import EXPERIMENT, claims, entrants, first_toy, group_lasso, tracks
from experiments.lv_hba.config import CHECKED, PARTS, PRESETS, GroupLasso, Machine, Race, Toy
from experiments.lv_hba.data_cleaning import cleaning, corrupted_digits, trained
from experiments.lv_hba.race import Entrant, Lap, Track, race, seconds_to
from experiments.lv_hba.support_vectors import Split, baselines, exact, learn, problem, split
from experiments.lv_hba.toy import errors
from jattn import bilevel
from jattn.bilevel import SOBA, Problem
from jattn.bilevel.toys import CONVEX_TOY_ANSWER, convex_toy
from jattn.runs import open_run

SMOKE = PRESETS["smoke"].config


def test_the_toys_answer() -> None:
    """Inner variables are optimal with multiplier -1, and no other outer ones do better.

    With y1 = x + 1 by stationarity, and the sums 0, the outer objective is a quadratic of means alone.
    """
    toy, size = convex_toy(4), 4
    x, y = jnp.full(size, CONVEX_TOY_ANSWER), jnp.stack([jnp.full(size, 0.7), jnp.full(size, -0.4)])
    np.testing.assert_allclose(toy.equality(x, y), 0, atol=1e-6)
    by_inner = jax.grad(lambda y: toy.inner(x, y) - toy.equality(x, y).sum())(y)
    np.testing.assert_allclose(by_inner, 0, atol=1e-6)

    def reduced(x: jax.Array) -> jax.Array:
        first = x + 1
        second = jnp.full(size, -(x.sum() + first.sum()) / size)  # of all that sum so, the nearest to equal x
        return toy.outer(x, jnp.stack([first, second]))

    np.testing.assert_allclose(jax.grad(reduced)(x), 0, atol=1e-6)
    moved = toy.project_joint(x + 1.0, y)
    np.testing.assert_allclose(toy.equality(*moved), 0, atol=1e-6)


def test_the_toys_error_falls_to_its_bar() -> None:
    found, last = errors(50, 1000, 200)
    assert found[-1] <= claims.ERRORS[1]
    np.testing.assert_allclose(np.linalg.norm(last - CONVEX_TOY_ANSWER) / (0.3 * 50**0.5), found[-1], rtol=1e-6)


def test_the_first_toys_least_value_and_inner_solution() -> None:
    """Against the optimality conditions of the inner problem, and a general minimiser from many starts."""
    with jax.enable_x64(True):
        given = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), first_toy.coefficients(20, (0, 0)))
        toy = first_toy.equality_toy(given)
        assert [len(each) for each in given] == [18, 18, 9, 20, 20, 20]
        y = first_toy.exact(given, given.start)
        np.testing.assert_allclose(toy.equality(given.start, y), 0, atol=1e-9)
        slope = np.asarray(jax.grad(toy.inner, argnums=1)(given.start, y))
        multipliers = np.linalg.lstsq(np.asarray(given.of_inner).T, slope)[0]
        np.testing.assert_allclose(given.of_inner.T @ multipliers, slope, atol=1e-9)
        np.testing.assert_allclose(given.fixed @ given.start, 0, atol=1e-6)
        basis = jnp.asarray(np.linalg.svd(given.fixed)[2][9:].T)
        value = jax.jit(jax.value_and_grad(lambda u: first_toy.hyper_objective(given, basis @ u)))
        generator = np.random.default_rng(0)
        found = min(
            scipy.optimize.minimize(value, 0.3 * generator.normal(size=11), jac=True, method="L-BFGS-B").fun
            for _ in range(20)
        )
        np.testing.assert_allclose(first_toy.least(given), found, atol=1e-5)


@pytest.mark.parametrize(("given", "sizes"), [(SMOKE.machine, (30, 20, 519)), (SMOKE.cleaning, (30, 20, 1747))])
def test_splits_share_no_sample_and_the_inner_solution_is_one(given: Machine, sizes: tuple[int, ...]) -> None:
    data = split(given, (0, 0))
    assert tuple(len(each) for each in data[:3]) == sizes
    assert data.corrupted.sum() == round(given.corrupted * 30)
    signs = np.concatenate([np.asarray(each[:, -1]) for each in data[:3]])
    rows = np.concatenate(data[:3]) * np.sign(signs)[:, None]
    assert len(np.unique(rows.round(5), axis=0)) == sum(sizes)
    np.testing.assert_allclose(np.abs(signs), 1 / np.sqrt(rows.shape[1]), rtol=1e-6)
    found = exact(data, data.start)
    whole = problem(data, 30.0)
    assert whole.violation(data.start, found) < 1e-6

    def reduced(weights: jax.Array) -> jax.Array:
        slack = jnp.maximum(1 - data.training @ weights, 0)
        return whole.inner(jnp.zeros(30), {"weights": weights, "slack": slack})

    np.testing.assert_allclose(jax.grad(reduced)(found["weights"]), 0, atol=1e-5)
    other = split(given, (0, 1))
    assert np.abs(other.training - data.training).max() > 0.1
    clean = split(replace(given, corrupted=0.0), (0, 0))
    turned = np.asarray(clean.training != data.training).any(axis=1)
    np.testing.assert_array_equal(turned, data.corrupted)


def test_the_outer_objective_moves_the_slack_weights_and_nothing_else_does() -> None:
    data = split(SMOKE.machine, (0, 0))
    learned, unguided = (learn(data, 10.0, 200, 30.0, weight) for weight in (1.0, 0.0))
    assert learned.moved[0] == 0
    assert learned.moved[-1] > 100 * unguided.moved[-1]
    np.testing.assert_allclose(np.linalg.norm(learned.costs - data.start), learned.moved[-1], rtol=1e-5)


def test_baselines_know_what_is_corrupted_and_shuffling_keeps_values() -> None:
    """One sample alone is right, and the rest are corrupted: what is left is the machine of that sample."""
    data = split(SMOKE.machine, (0, 0))
    corrupted = jnp.ones(30, bool).at[0].set(False)
    found = baselines(data._replace(corrupted=corrupted), jnp.full(30, -3.0), jax.random.key(0))
    alone = Split(data.training[:1], data.validation, data.test, data.start[:1], corrupted[:1])
    errors = [np.mean(np.asarray(data.test @ exact(alone, jnp.full(1, c))["weights"]) < 0) for c in (-8.0, -1.0)]
    assert min(errors) - 1e-6 <= found.without_corrupted[1] <= max(errors) + 1e-6
    same = np.mean(np.asarray(data.test @ exact(data, jnp.full(30, -3.0))["weights"]) < 0)
    np.testing.assert_allclose(found.shuffled[1], same, atol=1e-6)  # equal values in any order


def test_softmax_regression_is_that_of_a_peer_and_blocks_mean_the_whole() -> None:
    """scikit-learn's, with weights of samples; its penalty is of the sum and not of the mean."""
    samples, decay = corrupted_digits(100, 50, 0.4, (0, 0)), 0.01
    assert samples.corrupted.sum() == 40
    sample_weights = jax.random.uniform(jax.random.key(0), (100,))
    features, targets = (np.asarray(each) for each in samples.training)
    peer = LogisticRegression(C=1 / (decay * 100), fit_intercept=False, tol=1e-10, max_iter=10_000)
    peer.fit(features, targets.argmax(axis=1), sample_weight=sample_weights)
    np.testing.assert_allclose(trained(samples, sample_weights, decay), peer.coef_.T, atol=3e-3)
    x, weights = jax.random.normal(jax.random.key(1), (100,)) / 30, jnp.asarray(peer.coef_.T, jnp.float32)
    whole, blocks = (cleaning(samples, decay, 30.0, count) for count in (None, 5))
    measured = blocks.whole(jax.random.key(0))
    for name in ("outer", "inner"):
        np.testing.assert_allclose(getattr(measured, name)(x, weights), getattr(whole, name)(x, weights), rtol=1e-5)
    point, along = 0.01 * jnp.ones((65, 10)), jnp.outer(features.mean(0), jnp.eye(10)[0] - jnp.eye(10)[1])
    _, curved = jax.jvp(jax.grad(lambda weights: whole.inner(jnp.ones(100), weights)), (point,), (along,))
    # Softmax regression's curvature between two of ten classes alike is 1/10 of least squares', and of two alone 1/2.
    ratio = jnp.vdot(along, curved) / jnp.vdot(along, along) / tracks.largest_curvature(Race(decay=decay), samples)
    assert 0.15 < ratio < 0.2 + decay


def test_every_method_that_fits_is_in_the_race() -> None:
    public = [getattr(bilevel, name) for name in bilevel.__all__]
    methods = {each.__name__ for each in public if isinstance(each, type) and issubclass(each, bilevel.Method)} - {
        "Method"
    }
    smooth, coupled = entrants.of_smooth_problems(1.0), entrants.of_equalities()
    built = {type(each.build(0.1, 0.1)).__name__ for each in (*smooth.values(), *coupled.values())}
    assert built == methods
    assert {type(each.build(0.1, 0.1)).__name__ for each in smooth.values()} == methods - {"AiPOD"}
    assert all(len(numbers) == 3 for each in (*smooth.values(), *coupled.values()) for numbers in each.settings)


def test_a_race_ends_where_the_problem_does() -> None:
    """On a quadratic whose hyper-objective is known; the search leaves out steps that diverge."""
    form = lambda target: Problem(lambda x, y: 0.5 * (y - target) ** 2, lambda x, y: 0.5 * (y - x) ** 2)  # noqa: E731
    track = Track(
        lambda n: jnp.float32(n + 1),
        {"whole": form},
        lambda target: (jnp.float32(0), jnp.float32(0)),
        lambda target, x: 0.5 * (x - target) ** 2,
        lambda target: (1.0, 0.0),
    )
    entrant = Entrant(lambda a, b: SOBA(a, b, b), ((1e-6, 0.1, 50.0), (1e-6, 0.5, 50.0)))
    ((name, raced),) = race(track, {"SOBA": entrant}, 2, 0.05, 5, lambda: None)
    assert (name, raced.settings) == ("SOBA", (0.1, 0.5))
    assert [lap.hyper_objective[0] for lap in raced.laps] == [2.0, 4.5]
    assert all(lap.hyper_objective[-1] < 1e-3 and (np.diff(lap.seconds) > 0).all() for lap in raced.laps)
    np.testing.assert_allclose([float(lap.outer) for lap in raced.laps], [2, 3], atol=0.05)


def test_seconds_are_read_off_between_records() -> None:
    lap = Lap(np.array([0.0, 1.0, 2.0]), np.array([4.0, 2.0, np.nan]), 10, None)
    assert [seconds_to(lap, bar) for bar in (5.0, 3.0, 2.0, 1.0)] == [0.0, 0.5, 1.0, np.inf]


def test_the_group_lassos_inner_solution_is_one() -> None:
    """By the KKT conditions: minus the gradient is a multiple of a group's coefficients, of 0 where there is room."""
    data, radii = group_lasso.samples(SMOKE.group_lasso, (0,)), jnp.array([0.5, 100.0, 0.2, 0.0])
    found = group_lasso.exact(data, radii, jnp.zeros((4, 4)))
    down = -np.asarray(jax.grad(lambda each: group_lasso.half_mean_square(data.training, each))(found))
    norms = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(norms[[0, 2, 3]], [0.5, 0.2, 0.0], atol=1e-5)
    assert norms[1] < 100
    np.testing.assert_allclose(down[1], 0, atol=1e-3)
    for group in (0, 2):
        np.testing.assert_allclose(down[group], np.linalg.norm(down[group]) * found[group] / norms[group], atol=1e-3)
    whole = group_lasso.problem(data)
    assert whole.violation(radii, found) < 1e-5
    moved = whole.project_joint(radii, found + 1)
    assert (np.linalg.norm(moved[1], axis=1) <= moved[0] + 1e-5).all()


def settled(path: Path, worse: float = 1.0) -> dict[str, bool]:
    """Whether claims hold if errors are 0.5 over the penalty, times `worse`, and the loss falls to a quarter."""
    steps = 200 * np.arange(1, 101)
    penalties = steps**0.45
    errors = {size: 0.45 / penalties * worse ** np.linspace(0, 1, 100) for size in (100, 1000)}
    errors[1000] = errors[1000] * worse
    ones = np.ones((5, 21)) + 1e-3 * np.arange(5)[:, None]
    fall = np.linspace(1, 0.25 * worse, 21)
    learned = {"moved": 10 / worse**3 * ones, "exact": fall * ones, "test_error": 0.1 * (fall + 0.75) * ones}
    unguided = {"moved": 1e-3 * ones}
    compared = {"shuffled": ones[:, :2] * np.array([0.9, 0.178]), "common": ones[:, :2] * np.array([0.8, 0.15])}
    seconds = {"LVHBA": 0.5 * worse, "AiPOD": 1.0, "BLOCC": 3.0}
    with open_run(EXPERIMENT, "smoke", SMOKE, path, quiet=True) as run:
        claims.settle_toy(run, errors, np.full(100, 0.5), penalties, (0.02, 0.002 * worse**2, 0.03), 200)
        claims.settle_machine(run, learned, unguided, compared)
        claims.settle_cleaning(run, learned, unguided, compared, 0.9 / worse * ones[:, 0], 0.4 * ones[:, 0])
        shares = {"one": 0.9 * ones[:3, 0], "another": 0.7 / worse * ones[:3, 0]}
        claims.settle_digits_race(run, shares, 0.1 * ones[:3, 0])
        claims.settle_toy_race(run, {name: each * np.ones(3) for name, each in seconds.items()})
        pairs = {"learned": worse, "common": 2.0, "searched": 2.0 * worse, "differentiated": 1.0}
        claims.settle_group_lasso(run, {name: each * ones[:, :2] for name, each in pairs.items()})
        return {verdict.claim.name: verdict.held for verdict in run.verdicts}


def test_claims_on_planted_numbers(tmp_path: Path) -> None:
    held = settled(tmp_path / "held")
    assert len(held) == 14
    assert all(held.values()), held
    assert not any(settled(tmp_path / "lost", worse=4.0).values())


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Toy(sizes=()), r"sizes must be at least one number from 1; got \(\)"),
        (lambda: Toy(record_every=300), "record_every must divide"),
        (lambda: Toy(penalty=0.0), "penalty must be positive; got 0.0"),
        (lambda: Machine(steps=30), "steps must be a multiple of 20"),
        (lambda: Machine(training=500), "training and validation must leave some of 569 samples; got 500 and 130"),
        (lambda: Machine(penalties=()), r"penalties must be at least one positive number; got \(\)"),
        (lambda: Machine("letters"), r"data must be one of \('breast_cancer', 'digits'\); got 'letters'"),
        (lambda: Race(training=31), "training and validation must be multiples of blocks = 5; got 31 and 300"),
        (lambda: Race(methods=("LVHAB",)), "methods must be among Unrolled, .*; got LVHAB"),
        (lambda: Race(methods=("LVHBA",)), "methods must have LVHBA and AiPOD"),
        (lambda: GroupLasso(training=100), "training must be above 100 coefficients; got 100"),
        (lambda: replace(SMOKE, parts=("toys",)), "parts must be some of"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], object], complaint: str) -> None:
    assert CHECKED[-1] == Toy().steps
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("parts", "claimed", "figures"),
    [
        (("toy", "machine"), 7, {"toy", "machine"}),
        pytest.param(PARTS, 15, {"toy", "machine", "cleaning", "race"}, marks=pytest.mark.slow),
    ],
)
def test_the_smoke_preset_runs(tmp_path: Path, parts: tuple[str, ...], claimed: int, figures: set[str]) -> None:
    config = replace(SMOKE, parts=parts)
    with open_run(EXPERIMENT, "smoke", config, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(config, run)
        assert len(run.verdicts) == claimed
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")} == figures
