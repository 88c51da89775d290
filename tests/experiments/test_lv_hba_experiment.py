"""The toy's answer and the inner solution by their optimality conditions; planted claims; a whole small run."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lv_hba import EXPERIMENT, claims
from experiments.lv_hba.config import CHECKED, PRESETS, Config
from experiments.lv_hba.support_vectors import exact, learn, problem, split
from experiments.lv_hba.toy import ANSWER, convex_toy, errors
from jattn.runs import open_run

SMOKE = PRESETS["smoke"].config


def test_the_toys_answer() -> None:
    """Inner variables are optimal with multiplier -1, and no other outer ones do better.

    With y1 = x + 1 by stationarity, and the sums 0, the outer objective is a quadratic of means alone.
    """
    toy, size = convex_toy(4), 4
    x, y = jnp.full(size, ANSWER), jnp.stack([jnp.full(size, 0.7), jnp.full(size, -0.4)])
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
    np.testing.assert_allclose(np.linalg.norm(last - ANSWER) / (0.3 * 50**0.5), found[-1], rtol=1e-6)


def test_splits_share_no_sample_and_the_inner_solution_is_one() -> None:
    data = split(SMOKE, 0)
    assert [len(each) for each in data] == [30, 20, 519, 30]
    rows = np.concatenate(data[:3])
    assert len(np.unique(rows.round(5), axis=0)) == 569
    np.testing.assert_allclose(np.abs(data.training[:, -1]), 1 / np.sqrt(31), rtol=1e-6)
    found = exact(data, data.start)
    whole = problem(data, 30.0)
    assert whole.violation(data.start, found) < 1e-6

    def reduced(weights: jax.Array) -> jax.Array:
        slack = jnp.maximum(1 - data.training @ weights, 0)
        return whole.inner(jnp.zeros(30), {"weights": weights, "slack": slack})

    np.testing.assert_allclose(jax.grad(reduced)(found["weights"]), 0, atol=1e-5)
    other = split(SMOKE, 1)
    assert np.abs(other.training - data.training).max() > 0.1


@pytest.mark.slow
def test_the_step_moves_the_slack_weights_unless_it_is_dropped() -> None:
    data = split(SMOKE, 0)
    learned, dropped = (learn(data, 200, 30.0, frozen) for frozen in (False, True))
    assert learned.moved[0] == 0
    assert learned.moved[-1] > 0
    assert (np.asarray(dropped.moved) == 0).all()
    np.testing.assert_allclose(dropped.exact, dropped.exact[0], rtol=1e-6)


def settled(path: Path, worse: float = 1.0) -> dict[str, bool]:
    """Whether claims hold if errors are 0.5 over the penalty, times `worse`, and the loss falls to a quarter."""
    steps = 200 * np.arange(1, 101)
    penalties = steps**0.45
    errors = {size: 0.45 / penalties * worse ** np.linspace(0, 1, 100) for size in (100, 1000)}
    errors[1000] = errors[1000] * worse
    ones = np.ones((5, 21)) + 1e-3 * np.arange(5)[:, None]
    fall = np.linspace(1, 0.25 * worse, 21)
    learned = {"moved": 10 / worse**3 * ones, "exact": fall * ones, "test_error": 0.1 * (fall + 0.75) * ones}
    dropped = {"moved": 0 * ones, "exact": ones, "test_error": 0.1 * ones}
    with open_run(EXPERIMENT, "smoke", SMOKE, path, quiet=True) as run:
        claims.settle_toy(run, errors, np.full(100, 0.5), penalties, (0.02, 0.002 * worse**2, 0.03), 200)
        claims.settle_machine(run, learned, dropped)
        return {verdict.claim.name: verdict.held for verdict in run.verdicts}


def test_claims_on_planted_numbers(tmp_path: Path) -> None:
    held = settled(tmp_path / "held")
    assert len(held) == 7
    assert all(held.values()), held
    assert not any(settled(tmp_path / "lost", worse=4.0).values())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sizes": ()}, r"sizes must be at least one number from 1; got \(\)"),
        ({"record_every": 300}, "record_every must divide"),
        ({"steps": 30}, "steps must be a multiple of 20"),
        ({"training": 500}, "training and validation must leave some of 569 samples; got 500 and 130"),
        ({"penalty": 0.0}, "penalty must be positive; got 0.0"),
    ],
)
def test_bad_settings_are_named(change: dict, complaint: str) -> None:
    assert CHECKED[-1] == Config().toy_steps
    with pytest.raises(ValueError, match=complaint):
        replace(Config(), **change)


def test_the_smoke_preset_runs(tmp_path: Path) -> None:
    with open_run(EXPERIMENT, "smoke", SMOKE, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(SMOKE, run)
        assert len(run.verdicts) == 7
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")} == {"toy", "machine"}
