"""Projections against SciPy's solver, their own optimality conditions, and central differences."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import assert_derivatives
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from jattn.implicit import projections

NUMBERS = np.random.default_rng(1)
X, A, UPPER = NUMBERS.normal(size=5) * 2, NUMBERS.normal(size=(2, 5)), 0.5 + NUMBERS.uniform(size=5)
WEIGHTS, INSIDE = 0.5 + NUMBERS.uniform(size=5), 0.2 * NUMBERS.normal(size=5)
SQUARE, SYMMETRIC = NUMBERS.normal(size=(4, 4)), NUMBERS.normal(size=(3, 3))
ROWS, COLUMNS = np.array([1.0, 2.0, 0.5]), np.array([1.5, 0.5, 1.0, 0.5])


@pytest.fixture
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def nearest(x: np.ndarray, equal: Any = None, below: Any = None, **more: Any) -> np.ndarray:
    """argmin ‖y - x‖² where equal(y) = 0 and below(y) <= 0, by sequential quadratic programming."""
    constraints = [{"type": "eq", "fun": equal}] * (equal is not None)
    constraints += [{"type": "ineq", "fun": lambda y: -below(y)}] * (below is not None)
    start, options = 0.1 * np.ones(x.size), {"ftol": 1e-15, "maxiter": 500}

    def half_squares(y: np.ndarray) -> Any:
        return 0.5 * ((y - x.ravel()) ** 2).sum()

    jac = lambda y: y - x.ravel()  # noqa: E731
    return minimize(half_squares, start, jac=jac, method="SLSQP", constraints=constraints, options=options, **more).x


def matrix_sums(y: np.ndarray) -> np.ndarray:
    y = y.reshape(3, 4)
    return np.concatenate([y.sum(1) - ROWS, y.sum(0)[:-1] - COLUMNS[:-1]])


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Callable[[], Any]]] = {
    "simplex": (
        projections.simplex,
        (X, 1.3),
        lambda: nearest(X, lambda y: y.sum() - 1.3, bounds=[(0, None)] * 5),
    ),
    "l1 ball": (
        projections.l1_ball,
        (X, 1.3),
        lambda: np.sign(X) * nearest(np.abs(X), below=lambda y: y.sum() - 1.3, bounds=[(0, None)] * 5),
    ),
    "box section": (
        projections.box_section,
        (X, -UPPER, UPPER + 0.2, WEIGHTS, 0.3),
        lambda: nearest(X, lambda y: WEIGHTS @ y - 0.3, bounds=list(zip(-UPPER, UPPER + 0.2, strict=True))),
    ),
    "affine set": (projections.affine_set, (X, A, A @ INSIDE), lambda: nearest(X, lambda y: A @ (y - INSIDE))),
    "polyhedron": (
        projections.polyhedron,
        (X, A[:1], A[:1] @ INSIDE, np.concatenate([np.eye(5), -np.eye(5)]), np.concatenate([UPPER, UPPER])),
        lambda: nearest(X, lambda y: A[:1] @ (y - INSIDE), bounds=list(zip(-UPPER, UPPER, strict=True))),
    ),
    "second-order cone": (
        projections.second_order_cone,
        (np.append(X[:4], 0.3),),
        lambda: nearest(np.append(X[:4], 0.3), below=lambda y: np.linalg.norm(y[:4]) - y[4]),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("_double")
def test_value_and_all_derivatives(name: str) -> None:
    function, arguments, oracle = CASES[name]
    arguments = tuple(map(jnp.asarray, arguments))
    np.testing.assert_allclose(jax.jit(function)(*arguments), oracle(), atol=1e-6)
    assert_derivatives(function, arguments)


@pytest.mark.usefixtures("_double")
def test_transport_polytope() -> None:
    """Sums of rows and columns must agree, so derivatives are along those that do."""
    x = jnp.asarray(NUMBERS.normal(size=(3, 4)))
    transport = jax.jit(projections.transport_polytope)
    found = transport(x, jnp.asarray(ROWS), jnp.asarray(COLUMNS))
    np.testing.assert_allclose(found.ravel(), nearest(np.asarray(x), matrix_sums, bounds=[(0, None)] * 12), atol=1e-6)
    np.testing.assert_allclose(matrix_sums(np.asarray(found)), 0, atol=1e-14)

    def along(x: Any, mass: Any) -> Any:
        rows, columns = jnp.asarray(ROWS).at[1].add(mass), jnp.asarray(COLUMNS).at[2].add(mass)
        return projections.transport_polytope(x, rows, columns)

    assert_derivatives(along, (x, jnp.zeros(())))
    assert jnp.isnan(transport(x, jnp.ones(3), jnp.ones(4))).all()


birkhoff = jax.jit(projections.birkhoff_polytope)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_birkhoff_polytope(scale: float) -> None:
    """In single precision: doubly stochastic, and no vertex is nearer in direction x - found."""
    for seed in range(3):
        x = scale * np.random.default_rng(seed).normal(size=(6, 6)).astype(np.float32)
        found = np.asarray(birkhoff(jnp.asarray(x)))
        np.testing.assert_allclose([found.sum(0), found.sum(1)], 1, atol=1e-5)
        assert found.min() >= -1e-6
        vertices = np.stack([np.eye(6)[np.random.default_rng(i).permutation(6)] for i in range(200)])
        assert ((x - found) * (vertices - found)).sum((1, 2)).max() < 1e-4 * max(1, scale)


@pytest.mark.usefixtures("_double")
def test_positive_semidefinite_cone() -> None:
    values, vectors = np.linalg.eigh(SYMMETRIC + SYMMETRIC.T)
    found = jax.jit(projections.positive_semidefinite_cone)(jnp.asarray(2 * SYMMETRIC))
    np.testing.assert_allclose(found, (vectors * np.maximum(values, 0)) @ vectors.T, atol=1e-12)
    assert_derivatives(projections.positive_semidefinite_cone, (jnp.asarray(SYMMETRIC),))
    # Equal eigenvalues, where derivatives of eigenvectors are infinite.
    assert_derivatives(projections.positive_semidefinite_cone, (jnp.diag(jnp.array([2.0, 2.0, -1.0])),))


simplex = jax.jit(projections.simplex)


@given(st.sampled_from([1, 2, 5, 12]), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 5.0]))
@settings(max_examples=20, deadline=None)
def test_simplex_of_any_length(n: int, seed: int, total: float) -> None:
    """Of every point of the simplex, none lies further along x - found: its vertices are enough."""
    x = np.random.default_rng(seed).normal(size=n).round(1)
    found = np.asarray(simplex(jnp.asarray(x, jnp.float32), jnp.float32(total)))
    np.testing.assert_allclose(found.sum(), total, atol=1e-5)
    assert found.min() >= 0
    assert (x - found) @ found >= total * (x - found).max() - 1e-4


def test_large_numbers() -> None:
    """Where sums lose what differences keep; and bounds that leave one point, or none."""
    x = 1e6 + jnp.asarray(NUMBERS.normal(size=100), jnp.float32)
    np.testing.assert_allclose(simplex(x), simplex(x - 1e6), atol=1e-6)
    np.testing.assert_allclose(jax.jit(projections.l1_ball)(-x).sum(), -1, rtol=1e-6)
    x, one = jnp.array([0.5, -3.0, 2.0]), jnp.ones(3)
    section = jax.jit(projections.box_section)
    np.testing.assert_array_equal(section(x, one, one, one, jnp.float32(3)), one)
    assert jnp.isnan(section(x, -one, one, one, jnp.float32(3.1))).all()
    assert jnp.isnan(simplex(x, jnp.float32(-1))).all()
    nowhere = {"G": jnp.array([[1.0, 0, 0], [-1, 0, 0]]), "h": -jnp.ones(2)}
    assert jnp.isnan(jax.jit(projections.polyhedron)(x, **nowhere)).all()


def test_cones_on_either_side() -> None:
    cone, slope = jax.jit(projections.second_order_cone), jax.jit(jax.jacrev(projections.second_order_cone))
    for x, want in (([0.0, 0.0, 1.0], [0, 0, 1]), ([0.3, 0.4, -0.6], [0, 0, 0]), ([3.0, 4.0, 0.0], [1.5, 2, 2.5])):
        np.testing.assert_allclose(cone(jnp.array(x)), want, atol=1e-6)
        assert jnp.isfinite(slope(jnp.array(x))).all()
    np.testing.assert_array_equal(slope(jnp.array([0.0, 0, 1])), np.eye(3))
    assert jnp.isfinite(jax.jit(jax.jacrev(projections.positive_semidefinite_cone))(jnp.zeros((2, 2)))).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="A must be"):
        projections.affine_set(jnp.ones(2), jnp.ones((3, 2)), jnp.ones(3))
