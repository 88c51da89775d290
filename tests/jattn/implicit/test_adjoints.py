"""Unrolled, truncated, one-step and Neumann derivatives against their series in matrices, and the memory they take."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jattn import implicit
from jattn.implicit import Iteration, Neumann, OneStep, Truncated, Unrolled, descent

NUMBERS = np.random.default_rng(0)
MATRIX = 0.9 * np.linalg.qr(NUMBERS.normal(size=(5, 5)))[0] @ np.diag([1, 0.8, 0.5, 0.2, 0.1])
OUTER = NUMBERS.normal(size=5)
STEPS = 7


@pytest.fixture(autouse=True)
def _double() -> Any:
    with jax.enable_x64(True):
        yield


def step(inner: jax.Array, outer: jax.Array) -> jax.Array:
    """A contraction; its fixed point is (1 - M)⁻¹ θ, and its derivative by θ 1, by the inner variables M."""
    return MATRIX @ inner + outer


def series(terms: int) -> np.ndarray:
    return sum(np.linalg.matrix_power(MATRIX, power) for power in range(terms))


SOLVER = Iteration(step, STEPS)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize(
    ("adjoint", "want"),
    [
        (Unrolled(), series(STEPS)),
        (Unrolled(segment=3), series(STEPS)),
        (Unrolled(segment=20), series(STEPS)),
        (Truncated(2), series(2)),
        (Truncated(50), series(STEPS)),
        (OneStep(), np.eye(5)),
        (Neumann(1), np.eye(5)),
        (Neumann(4), series(4)),
        (Neumann(400), np.linalg.inv(np.eye(5) - MATRIX)),
        (implicit.Implicit(), np.linalg.inv(np.eye(5) - MATRIX)),
    ],
)
def test_derivatives_of_a_linear_fixed_point(adjoint: Any, want: np.ndarray, mode: Any) -> None:
    solve = implicit.fixed_point(step, SOLVER, adjoint=adjoint, check=None)
    found = jax.jit(mode(lambda outer: solve(jnp.ones(5), outer).value))(OUTER)
    np.testing.assert_allclose(found, want, atol=1e-9)


def test_the_solvers_own_values_do_not_depend_on_the_adjoint() -> None:
    want = jnp.ones(5)
    for _ in range(STEPS):
        want = step(want, OUTER)
    for adjoint in (Unrolled(), Unrolled(3), Truncated(2), OneStep(), implicit.Implicit()):
        solve = implicit.fixed_point(step, SOLVER, adjoint=adjoint)
        np.testing.assert_allclose(solve(jnp.ones(5), OUTER).value, want, rtol=1e-12)
    default = implicit.fixed_point(step)(jnp.zeros(5), OUTER)
    np.testing.assert_allclose(default.value, np.linalg.solve(np.eye(5) - MATRIX, OUTER), rtol=1e-4)


def test_steps_downhill_and_their_rate() -> None:
    """x ← x - η (H x - θ): terms of η Σ (1 - ηH)ⁱ, whether unrolled or a series at the solution."""
    hessian, rate = np.diag([0.5, 1.0, 2.0]), 0.3

    def objective(inner: jax.Array, outer: jax.Array) -> jax.Array:
        return 0.5 * inner @ hessian @ inner - outer @ inner

    solver = descent(objective, optax.sgd(rate), 12)
    want = rate * sum(np.linalg.matrix_power(np.eye(3) - rate * hessian, power) for power in range(12))
    for adjoint in (Unrolled(), Unrolled(4), Truncated(12), Neumann(12, rate)):
        solve = implicit.minimise(objective, solver, adjoint=adjoint, check=None)
        found = jax.jit(jax.jacrev(lambda outer, solve=solve: solve(jnp.zeros(3), outer).value))(jnp.ones(3))
        np.testing.assert_allclose(found, want, rtol=1e-10)
    one = implicit.minimise(objective, solver, adjoint=OneStep(rate), check=None)
    np.testing.assert_allclose(jax.jacfwd(lambda outer: one(jnp.zeros(3), outer).value)(jnp.ones(3)), rate * np.eye(3))


@pytest.mark.parametrize("terms", [2, 4, 100])
def test_a_series_that_diverges_is_spoken_of_and_one_that_does_not_is_not(terms: int) -> None:
    """At a rate over 2 / the largest eigenvalue, 2, of which a random direction of 40 has little."""
    hessian = np.diag(np.concatenate([np.linspace(0.1, 0.5, 39), [2.0]]))

    def derivative(rate: float, check: str) -> jax.Array:
        solve = implicit.root(
            implicit.stationary(lambda inner, outer: 0.5 * inner @ hessian @ inner - outer @ inner),
            lambda init, outer: outer / jnp.diag(hessian),
            adjoint=Neumann(terms, rate),
            check=check,
        )
        return jax.jit(jax.grad(lambda outer: solve(jnp.zeros(40), outer).value.sum()))(jnp.ones(40))

    series = sum(np.linalg.matrix_power(np.eye(40) - 0.95 * hessian, power) for power in range(terms))
    np.testing.assert_allclose(derivative(0.95, "raise"), 0.95 * series.sum(axis=0), rtol=1e-9)
    # Few terms are judged by as few steps of the power method, which find only a rate that is far off.
    assert jnp.isnan(derivative(3.0 if terms < 10 else 1.1, "poison")).all()
    assert jnp.isfinite(derivative(3.0, None)).all()


def test_an_iteration_stops_where_it_moves_little() -> None:
    found = Iteration(step, 10_000, tolerance=1e-10)(jnp.zeros(5), OUTER)
    np.testing.assert_allclose(found, np.linalg.solve(np.eye(5) - MATRIX, OUTER), rtol=1e-7)
    one = Iteration(lambda inner, outer: inner + outer, 100, tolerance=0.5)(jnp.ones(()), 0.25)
    assert one == 1.25  # moved by a quarter of its size


def temporaries(adjoint: Any, steps: int) -> int:
    """Bytes that the compiled gradient needs besides what goes in and comes out."""
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(400, 400)) / 40, jnp.float32)

    def pull(inner: jax.Array, outer: jax.Array) -> jax.Array:
        return jnp.tanh(matrix @ inner) + outer

    solve = implicit.fixed_point(pull, Iteration(pull, steps), adjoint=adjoint, check=None)

    def total(outer: jax.Array) -> jax.Array:
        return solve(jnp.zeros(400, jnp.float32), outer).value.sum()

    compiled = jax.jit(jax.grad(total)).lower(jnp.ones(400, jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory() -> None:
    """Flat in the steps if implicit; linear if unrolled; between with checkpoints, as the square root."""
    flat = implicit.Implicit(implicit.Gmres(restart=10))
    assert temporaries(flat, 6400) == temporaries(flat, 100)
    assert temporaries(OneStep(), 6400) == temporaries(OneStep(), 100)
    few, many = (temporaries(Unrolled(), steps) for steps in (100, 6400))
    assert many > 30 * few
    between = temporaries(Unrolled(80), 6400)
    assert few < between < many / 20


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Unrolled(0), "segment must be at least 1; got 0"),
        (lambda: Truncated(0), "steps must be at least 1; got 0"),
        (lambda: Iteration(step, 0), "steps must be at least 1; got 0"),
        (lambda: Iteration(step, 3, tolerance=-1.0), "tolerance must not be negative; got -1.0"),
        (lambda: implicit.fixed_point(step, lambda init, outer: init, adjoint=Unrolled(2)), "must be an Iteration"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(2), Truncated(2)], ids=str)
def test_what_is_unrolled_is_judged_too(adjoint: Any) -> None:
    """x = ½ (x + θ), after many steps and after few; values are not judged."""

    def step(inner: jax.Array, theta: jax.Array) -> jax.Array:
        return 0.5 * (inner + theta)

    def solve(steps: int, check: Any) -> Any:
        return implicit.fixed_point(step, Iteration(step, steps), adjoint=adjoint, check=check)

    def slope(steps: int, check: Any) -> jax.Array:
        return jax.jit(jax.grad(lambda theta: solve(steps, check)(jnp.zeros(()), theta).value))(3.0)

    far = {"Unrolled": 1 - 0.5**4, "Truncated": 1 - 0.5**2}[type(adjoint).__name__]
    np.testing.assert_allclose(slope(4, None), far, rtol=1e-6)
    assert np.isfinite(slope(40, "poison"))
    assert np.isnan(slope(4, "poison"))
    assert np.isfinite(solve(4, "poison")(jnp.zeros(()), 3.0).value)
