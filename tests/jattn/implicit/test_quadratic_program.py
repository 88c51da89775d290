"""Quadratic programs against closed forms, SciPy's solvers and central differences."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import assert_derivatives
from scipy.optimize import linprog, minimize

from jattn.implicit.quadratic_program import QuadraticSolution, solve_quadratic_program

SOLVE = jax.jit(solve_quadratic_program)
EYE = np.eye(2)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def solve(*problem: Any) -> QuadraticSolution:
    return SOLVE(*(None if each is None else jnp.asarray(each, float) for each in problem))


def least_squares(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed)
    data = numbers.normal(size=(4 * n, n))
    return data.T @ data + np.eye(n), -3 * data.T @ numbers.normal(size=4 * n)


def on_simplex(Q: Any, c: Any, budget: Any) -> QuadraticSolution:
    n = len(c)
    one, none = jnp.ones((1, n), Q.dtype), jnp.zeros(n, Q.dtype)
    return solve_quadratic_program(Q, c, one, budget[None], -jnp.eye(n, dtype=Q.dtype), none)


def random_problem(seed: int, n: int, equalities: int, inequalities: int) -> tuple[np.ndarray, ...]:
    """Feasible, with about half of the inequalities active."""
    numbers = np.random.default_rng(seed)
    Q, c = least_squares(seed, n)
    E, M, x = numbers.normal(size=(equalities, n)), numbers.normal(size=(inequalities, n)), numbers.normal(size=n)
    return Q, c, E, E @ x, M, M @ x + np.abs(numbers.normal(size=inequalities))


@pytest.mark.parametrize(("n", "equalities", "inequalities"), [(3, 1, 4), (6, 0, 9), (5, 2, 0)])
def test_as_sequential_quadratic_programming(n: int, equalities: int, inequalities: int) -> None:
    Q, c, E, d, M, h = random_problem(n, n, equalities, inequalities)
    found = solve(Q, c, E, d, M, h)
    constraints = [{"type": "eq", "fun": lambda x: E @ x - d}] * bool(equalities)
    constraints += [{"type": "ineq", "fun": lambda x: h - M @ x}] * bool(inequalities)
    want = minimize(
        lambda x: 0.5 * x @ Q @ x + c @ x,
        np.zeros(n),
        jac=lambda x: Q @ x + c,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(found.primal, want.x, atol=1e-6)
    assert found.converged
    assert found.residual < 1e-14


@pytest.mark.parametrize("n", [2, 32])
def test_optimality_to_machine_precision(n: int) -> None:
    Q, c, E, d, M, h = random_problem(0, n, n // 4, n)
    found = solve(Q, c, E, d, M, h)
    x, y, multiplier = (np.asarray(each) for each in found[:3])
    size = np.abs(Q).max() * (1 + np.abs(x).max())
    np.testing.assert_allclose(Q @ x + c + E.T @ y + M.T @ multiplier, 0, atol=1e-12 * size)
    np.testing.assert_allclose(E @ x, d, atol=1e-12)
    assert (h - M @ x).min() > -1e-12
    assert multiplier.min() > -1e-10
    assert not (multiplier * (h - M @ x)).round(9).any()
    np.testing.assert_array_equal(found.active, multiplier > h - M @ x)
    np.testing.assert_allclose(found.margin, np.abs(multiplier - (h - M @ x)).min(), rtol=1e-6)


def test_linear_program() -> None:
    numbers = np.random.default_rng(3)
    M, h, c = numbers.normal(size=(12, 4)), 1 + numbers.uniform(size=12), numbers.normal(size=4)
    M, h = np.concatenate([M, np.eye(4), -np.eye(4)]), np.concatenate([h, np.ones(8)])
    want = linprog(c, M, h, bounds=(None, None))
    found = solve(np.zeros((4, 4)), c, None, None, M, h)
    np.testing.assert_allclose(found.primal, want.x, atol=1e-9)
    np.testing.assert_allclose(found.inequality, -want.ineqlin.marginals, atol=1e-9)


@pytest.mark.parametrize("n", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 16, 32))])
def test_gradients_of_least_squares_on_a_simplex(n: int) -> None:
    """The problems on which gradients of jaxopt's solvers are off by half; within 10⁻⁴ in single precision too."""
    problems = [least_squares(seed, n) for seed in range(12)]
    Q, c, budget = np.stack([Q for Q, _ in problems]), np.stack([c for _, c in problems]), np.ones(12)
    budget = np.stack([budget, budget + 1e-6, budget - 1e-6])

    @jax.jit
    @jax.vmap
    @jax.value_and_grad
    def squares(budget: Any, Q: Any, c: Any) -> Any:
        return (on_simplex(Q, c, budget).primal ** 2).sum()

    values, gradients = squares(budget.ravel(), np.tile(Q, (3, 1, 1)), np.tile(c, (3, 1)))
    _, up, down = values.reshape(3, 12)
    np.testing.assert_allclose(gradients[:12], (up - down) / 2e-6, rtol=1e-6)
    _, single = squares(*(jnp.asarray(each, jnp.float32) for each in (budget[0], Q, c)))
    np.testing.assert_allclose(single, gradients[:12], rtol=1e-4)


def test_derivatives_in_all_six() -> None:
    """Of x and both multipliers, with active and inactive inequalities."""
    problem = tuple(map(jnp.asarray, random_problem(1, 4, 1, 5)))
    found = solve(*problem)
    assert 0 < found.active.sum() < 5
    assert_derivatives(lambda *problem: solve_quadratic_program(*problem)[:3], problem, tolerance=1e-5)


def test_weakly_active() -> None:
    """A bound that the minimiser 1 all but reaches: derivatives are right on both sides, and the margin tells."""
    by = jnp.array([1e-3, -1e-3, 1e-6, -1e-6, 0.0])
    c = jnp.stack([-1 - by, -jnp.ones(5)], 1)

    def primal(c: Any) -> tuple[Any, Any]:
        limits = {"M": jnp.array([[1.0, 0]]), "h": jnp.ones(1)}
        found = solve_quadratic_program(jnp.eye(2), c, **limits, check=None)
        return found.primal, found

    slope, found = jax.jit(jax.vmap(jax.jacrev(primal, has_aux=True)))(c)
    np.testing.assert_allclose(found.primal, np.stack([np.minimum(1 + by, 1), np.ones(5)], 1), atol=1e-14)
    np.testing.assert_allclose(found.margin, abs(by), atol=1e-14)
    assert found.converged.all()
    want = [[[-float(each < 0), 0], [0, -1]] for each in np.asarray(by)]
    np.testing.assert_allclose(slope[:4], want[:4], atol=1e-12)


@pytest.mark.parametrize(
    "problem",
    [
        (EYE, [1, 1], None, None, [[1, 0], [-1, 0]], [-1, -1]),
        (EYE, [1, 1], [[1, 1], [1, 1]], [1, 2]),
        (0 * EYE, [1, 1], None, None, [[1, 0]], [1]),
        (np.diag([1, 0]), [1, 1]),
    ],
    ids=["no point", "no point on the planes", "no end", "no end without constraints"],
)
def test_no_solution_is_seen(problem: Any) -> None:
    found = solve(*problem)
    assert not found.converged
    assert found.residual > 0.1


@pytest.mark.parametrize(
    ("problem", "want"),
    [
        ((EYE, [-1, -1], np.ones((2, 2)), [1, 1], [[1, 0], [1, 0], [2, 0]], [0.2, 0.2, 0.4]), [0.2, 0.8]),
        ((EYE, [1, 1], None, None, np.concatenate([EYE, -EYE]), [1, 2, -1, -2]), [1, 2]),
        ((1e6 * EYE, [1e8, 1e8], None, None, -1e3 * EYE, [1e3, -1e5]), [-1, 100]),
        ((EYE, [3, -4]), [-3, 4]),
    ],
    ids=["redundant", "a single point", "large numbers", "no constraints"],
)
def test_hard_cases(problem: Any, want: Any) -> None:
    found = solve(*problem)
    assert found.converged
    np.testing.assert_allclose(found.primal, want, rtol=1e-12)


def test_refusals() -> None:
    Q, c, rows, right = jnp.eye(3), jnp.ones(3), jnp.ones((2, 3)), jnp.ones(2)
    with pytest.raises(ValueError, match="E and d must be given together"):
        solve_quadratic_program(Q, c, rows)
    with pytest.raises(ValueError, match="M and h must be given together"):
        solve_quadratic_program(Q, c, h=right)


def test_derivatives_that_cannot_be_trusted_are_spoken_of() -> None:
    """Of an infeasible program, and where a multiplier and its slack are both 0; values are not."""
    one, sides = jnp.eye(1), jnp.array([[1.0], [-1.0]])

    def primal(check: Any, c: Any, h: Any) -> jax.Array:
        return solve_quadratic_program(one, c, M=sides, h=h, check=check).primal.sum()

    value, gradient = (jax.jit(each, static_argnums=0) for each in (primal, jax.grad(primal, 1)))
    none, infeasible, weakly = jnp.zeros(1), jnp.array([-1.0, -1.0]), jnp.array([0.0, 1.0])
    for h, what in ((infeasible, "residual of a quadratic program"), (weakly, "weakly active")):
        assert jnp.isnan(gradient("poison", none, h)).all()
        with pytest.raises(Exception, match=what):
            jax.block_until_ready(gradient("raise", none, h))
    np.testing.assert_allclose(gradient("raise", none, jnp.ones(2)), -1)
    np.testing.assert_allclose(value("raise", none, weakly), 0)
    with pytest.raises(ValueError, match="check must be"):
        solve_quadratic_program(one, jnp.zeros(1), check="loudly")
