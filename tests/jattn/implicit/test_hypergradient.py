"""Hypergradients step by step, against closed forms; what is carried; saving; the bound against the true error."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jattn import implicit
from jattn.implicit import Tolerances, descent, hypergradient, stationary

NUMBERS = np.random.default_rng(0)
ROWS, WEIGHTS = NUMBERS.normal(size=(60, 20)), NUMBERS.normal(size=20)
TARGETS = ROWS @ WEIGHTS + NUMBERS.normal(size=60)
OTHER = NUMBERS.normal(size=(40, 20))
OTHER_TARGETS = OTHER @ WEIGHTS + NUMBERS.normal(size=40)


@pytest.fixture(autouse=True)
def _double() -> Any:
    with jax.enable_x64(True):
        yield


def training(inner: jax.Array, outer: jax.Array) -> jax.Array:
    """Ridge regression with the logarithm of a penalty for each weight."""
    return 0.5 * ((ROWS @ inner - TARGETS) ** 2).mean() + 0.5 * (jnp.exp(outer) * inner**2).sum()


def validation(inner: jax.Array, outer: jax.Array) -> jax.Array:
    return 0.5 * ((OTHER @ inner - OTHER_TARGETS) ** 2).mean() + 0.01 * (outer**2).sum()


def closed(outer: jax.Array) -> jax.Array:
    """The validation loss at the solution."""
    matrix = ROWS.T @ ROWS / 60 + jnp.diag(jnp.exp(outer))
    return validation(jnp.linalg.solve(matrix, ROWS.T @ TARGETS / 60), outer)


CLOSED = jax.jit(jax.value_and_grad(closed))


def downhill(init: jax.Array, outer: jax.Array, tolerance: jax.Array) -> jax.Array:
    """Gradient steps until the gradient is small."""

    def step(inner: jax.Array) -> jax.Array:
        return inner - 0.2 * jax.grad(training)(inner, outer)

    return jax.lax.while_loop(lambda inner: jnp.linalg.norm(jax.grad(training)(inner, outer)) > tolerance, step, init)


EXACTLY = Tolerances((1e-10, 1e-10), (1e-10, 1e-10))


@pytest.mark.parametrize("structure", ["positive definite", "symmetric", "general"])
def test_exact_hypergradients(structure: Any) -> None:
    condition = implicit.Condition(jax.grad(training), structure, sign=1)
    problem = hypergradient(validation, condition, downhill, tolerances=EXACTLY)
    outer = jnp.linspace(-3, 0, 20)
    value, gradient, state, report = jax.jit(problem.step)(problem.init(jnp.zeros(20)), outer)
    want, slope = CLOSED(outer)
    np.testing.assert_allclose(value, want, rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, atol=1e-8)
    assert report.inner_residual < 1e-9
    assert report.adjoint_residual < 1e-9
    assert state.step == 1
    by_root = implicit.root(condition, lambda init, outer: downhill(init, outer, jnp.asarray(1e-10)))
    functional = jax.jit(jax.grad(lambda outer: validation(by_root(jnp.zeros(20), outer).value, outer)))(outer)
    np.testing.assert_allclose(gradient, functional, atol=1e-8)


def outer_run(problem: implicit.Hypergradient, steps: int, carry: bool = True) -> tuple[np.ndarray, np.ndarray, Any]:
    """Values, iterations of linear solves and the last state of Adam on the outer variables."""
    optimiser = optax.adam(0.1)

    def step(carried: Any, _: None) -> Any:
        outer, moments, state = carried
        state = state if carry else state.replace(adjoint=jnp.zeros(20), inner=jnp.zeros(20))
        value, gradient, state, report = problem.step(state, outer)
        updates, moments = optimiser.update(gradient, moments)
        return (optax.apply_updates(outer, updates), moments, state), (value, report.adjoint_iterations, report)

    outer = jnp.full(20, -2.0)
    first = outer, optimiser.init(outer), problem.init(jnp.zeros(20))
    last, (values, iterations, reports) = jax.jit(lambda first: jax.lax.scan(step, first, None, length=steps))(first)
    return np.asarray(values), np.asarray(iterations), (last, reports)


def test_what_is_carried_saves_work_and_changes_nothing_else() -> None:
    tolerances = Tolerances((1e-6, 1e-6), (1e-4, 1e-4))
    problem = hypergradient(validation, stationary(training), downhill, tolerances=tolerances)
    warm, few, _ = outer_run(problem, 30)
    cold, many, _ = outer_run(problem, 30, carry=False)
    np.testing.assert_allclose(warm, cold, rtol=1e-4)
    assert few[1:].sum() < 0.8 * many[1:].sum()


def test_extrapolation_saves_more_work_and_changes_nothing_else() -> None:
    tolerances = Tolerances((1e-6, 1e-6), (1e-4, 1e-4))
    found = [
        outer_run(
            hypergradient(validation, stationary(training), downhill, tolerances=tolerances, extrapolate=ahead), 30
        )
        for ahead in (False, True)
    ]
    (last, few, _), (led, fewer, _) = found
    np.testing.assert_allclose(led, last, rtol=1e-4)
    assert fewer[2:].sum() < 0.9 * few[2:].sum()


def test_tolerances_follow_the_outer_objective() -> None:
    """As loose as may be at first, as tight as may be once it settles; the loss reached is that of exact steps."""
    problem = hypergradient(validation, stationary(training), downhill)
    values, _, (_, reports) = outer_run(problem, 60)
    exact, _, _ = outer_run(hypergradient(validation, stationary(training), downhill, tolerances=EXACTLY), 60)
    np.testing.assert_allclose(values[-1], exact[-1], rtol=1e-3)
    asked = np.asarray(reports.inner_tolerance)
    assert asked[0] == asked[1] == 1e-3
    assert asked[-1] < 2e-4
    assert (np.asarray(reports.adjoint_residual) <= 1.001 * np.asarray(reports.adjoint_tolerance)).all()


def test_steps_that_do_not_converge_do_not_pass_unnoticed() -> None:
    """An inner solver that stops too soon, and a linear solve that does; values are never poisoned."""
    outer = jnp.linspace(-3, 0, 20)

    def stops(init: jax.Array, outer: jax.Array, tolerance: jax.Array) -> jax.Array:
        return init

    def stepped(solver: Any, most: int, check: Any) -> Any:
        problem = hypergradient(validation, stationary(training), solver, most=most, check=check)
        return jax.jit(problem.step)(problem.init(jnp.zeros(20)), outer)

    assert np.isfinite(stepped(downhill, 1000, "raise")[1]).all()
    for solver, most, what in ((stops, 1000, "residual of an inner solution"), (downhill, 1, "of the linear solve")):
        value, gradient, _, _ = stepped(solver, most, "poison")
        assert np.isfinite(value)
        assert np.isnan(gradient).all()
        assert np.isfinite(stepped(solver, most, None)[1]).all()
        with pytest.warns(implicit.ImplicitWarning, match=what):
            jax.block_until_ready(stepped(solver, most, "warn"))
        with pytest.raises(Exception, match=what):
            jax.block_until_ready(stepped(solver, most, "raise"))
    with pytest.raises(ValueError, match="check must be"):
        hypergradient(validation, stationary(training), downhill, check="loudly")


def test_a_saved_state_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    problem = hypergradient(validation, stationary(training), downhill)
    step, outer = jax.jit(problem.step), jnp.full(20, -1.0)
    _, _, state, _ = step(problem.init(jnp.zeros(20)), outer)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    for have, want in zip(
        jax.tree.leaves(step(restored, outer + 0.1)), jax.tree.leaves(step(state, outer + 0.1)), strict=True
    ):
        np.testing.assert_array_equal(have, want)


def test_inequalities_are_reported() -> None:
    """A box: of three inner variables one is at its side."""
    condition = implicit.kkt(lambda x, outer: 0.5 * ((x - outer) ** 2).sum(), None, lambda x, _: x - 1.0)

    def solver(init: Any, outer: jax.Array, tolerance: jax.Array) -> implicit.PrimalDual:
        return implicit.PrimalDual(jnp.minimum(outer, 1), None, jnp.maximum(outer - 1, 0))

    problem = hypergradient(lambda inner, outer: (inner.primal**2).sum(), condition, solver, tolerances=EXACTLY)
    init = problem.init(implicit.PrimalDual(jnp.zeros(3), None, jnp.zeros(3)))
    _, gradient, _, report = jax.jit(problem.step)(init, jnp.array([0.5, 0.9, 1.3]))
    np.testing.assert_allclose(gradient, [1.0, 1.8, 0.0], atol=1e-9)
    np.testing.assert_array_equal(report.active, [False, False, True])
    np.testing.assert_allclose(report.margin, 0.1)


def robust(inner: jax.Array, outer: jax.Array) -> jax.Array:
    return jnp.log(jnp.cosh(ROWS[:, :4] @ inner - TARGETS)).mean() + 0.5 * (jnp.exp(outer) * inner**2).sum()


def test_errors_of_inexact_solutions() -> None:
    """After few steps downhill the bound is above the true error and the estimate near it."""
    condition, outer = stationary(robust), jnp.full(4, -2.0)

    @jax.jit
    def jacobian(inner: jax.Array) -> jax.Array:
        hessian, mixed = jax.jacfwd(jax.grad(robust), (0, 1))(inner, outer)
        return -jnp.linalg.solve(hessian, mixed)

    exact = jax.jit(descent(robust, optax.sgd(1.0), 4000))(jnp.zeros(4), outer)
    cotangent = jnp.arange(1.0, 5)
    problem = hypergradient(
        lambda inner, _: cotangent @ inner,
        condition,
        lambda init, *_: init,
        tolerances=Tolerances((1.0, 1.0), (1e-9, 1e-9)),
    )

    @jax.jit
    def judged(inner: jax.Array) -> tuple[Any, jax.Array]:
        _, _, state, _ = problem.step(problem.init(inner), outer)
        return implicit.error_bound(condition, inner, outer), problem.error(state, outer)

    errors, bounds, inner, taken = [], [], jnp.zeros(4), 0
    ten = jax.jit(descent(robust, optax.sgd(0.3), 10))
    for steps in (10, 20, 40, 60):
        for _ in range(taken, steps, 10):
            inner = ten(inner, outer)
        taken = steps
        off = np.asarray(jacobian(inner) - jacobian(exact))
        found, error = judged(inner)
        np.testing.assert_allclose(found.distance, np.linalg.norm(inner - exact), rtol=0.3)
        errors.append(np.linalg.norm(off, 2))
        bounds.append(found.bound)
        assert errors[-1] <= 1.1 * bounds[-1]
        np.testing.assert_allclose(error, np.linalg.norm(cotangent @ off), rtol=0.35)
    slopes = np.diff(np.log(bounds)) / np.diff(np.log(errors))
    np.testing.assert_allclose(slopes, 1, atol=0.35)


def test_an_unfinished_adjoint_is_in_the_estimate() -> None:
    """Inner variables exact, the linear solve stopped early: the estimate is the error."""
    outer = jnp.full(20, -2.0)
    problem = hypergradient(
        validation, stationary(training), downhill, tolerances=Tolerances((1e-12, 1e-12), (0.5, 1e-9))
    )
    _, gradient, state, report = jax.jit(problem.step)(problem.init(jnp.zeros(20)), outer)
    assert 1e-3 < report.adjoint_residual <= 0.5
    error = np.linalg.norm(gradient - CLOSED(outer)[1])
    np.testing.assert_allclose(jax.jit(problem.error)(state, outer), error, rtol=1e-5)


@pytest.mark.parametrize("pair", [(1e-4, 1e-3), (1e-3, 0.0)])
def test_tolerances_that_make_no_sense_are_refused(pair: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="adjoint must be loosest ≥ tightest > 0"):
        Tolerances(adjoint=pair)
