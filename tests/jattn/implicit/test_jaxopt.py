"""What of jaxopt and of optax's projections holds on current JAX, and what does not, by how much.

jaxopt is no longer developed. What is asserted to be wrong here is why `jattn.implicit` has its own; should one of
these tests fail, it has been mended and ours can go.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest
from differences import assert_derivatives
from jaxopt import projection, prox
from scipy.optimize import minimize

NUMBERS = np.random.default_rng(1)
X, A, MATRIX = NUMBERS.normal(size=5) * 2, NUMBERS.normal(size=5), NUMBERS.normal(size=(2, 5))
ONES = np.ones(5)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def nearest(start: Any, penalty: Callable[[Any], Any] = lambda y: 0.0, **constraints: Any) -> np.ndarray:
    """argmin ½‖y - X‖² + penalty(y), by sequential quadratic programming."""
    found = minimize(
        lambda y: 0.5 * ((y - X) ** 2).sum() + penalty(y),
        start,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
        **constraints,
    )
    return found.x


def at_most(function: Callable[[Any], Any]) -> list[dict[str, Any]]:
    return [{"type": "ineq", "fun": lambda y: -function(y)}]


def exactly(function: Callable[[Any], Any]) -> list[dict[str, Any]]:
    return [{"type": "eq", "fun": function}]


BALL_1 = X * 0.9 / np.abs(X).sum()
OFFSET = float(A @ X) - 0.5
RIGHT = {
    "optax non-negative": (optax.projections.projection_non_negative, (X,), lambda: np.maximum(X, 0)),
    "optax box": (optax.projections.projection_box, (X, -0.7 * ONES, 0.9 * ONES), lambda: np.clip(X, -0.7, 0.9)),
    "optax l-inf ball": (optax.projections.projection_linf_ball, (X, 1.3), lambda: np.clip(X, -1.3, 1.3)),
    "optax l2 ball": (optax.projections.projection_l2_ball, (X, 1.3), lambda: 1.3 * X / np.linalg.norm(X)),
    "optax simplex": (
        optax.projections.projection_simplex,
        (X, 1.3),
        lambda: nearest(ONES / 5, bounds=[(0, None)] * 5, constraints=exactly(lambda y: y.sum() - 1.3)),
    ),
    "optax l1 ball": (
        optax.projections.projection_l1_ball,
        (X, 1.3),
        lambda: (
            np.array([1, -1])
            @ minimize(
                lambda y: 0.5 * ((y[:5] - y[5:] - X) ** 2).sum(),
                ONES.repeat(2) / 10,
                method="SLSQP",
                bounds=[(0, None)] * 10,
                constraints=at_most(lambda y: y.sum() - 1.3),
                options={"ftol": 1e-15, "maxiter": 500},
            ).x.reshape(2, 5)
        ),
    ),
    "optax hyperplane": (
        optax.projections.projection_hyperplane,
        (X, A, 1.3),
        lambda: nearest(X, constraints=exactly(lambda y: A @ y - 1.3)),
    ),
    "optax half-space": (
        optax.projections.projection_halfspace,
        (X, A, OFFSET),
        lambda: nearest(X - A, constraints=at_most(lambda y: A @ y - OFFSET)),
    ),
    "jaxopt lasso": (prox.prox_lasso, (X, 0.6, 1.3), lambda: np.sign(X) * np.maximum(np.abs(X) - 0.78, 0)),
    "jaxopt non-negative lasso": (
        prox.prox_non_negative_lasso,
        (X, 0.6, 1.3),
        lambda: nearest(ONES, lambda y: 0.78 * y.sum(), bounds=[(0, None)] * 5),
    ),
    "jaxopt elastic net": (
        lambda x, l1, l2, scaling: prox.prox_elastic_net(x, (l1, l2), scaling),
        (X, 0.6, 0.8, 1.3),
        lambda: np.sign(X) * np.maximum(np.abs(X) - 0.78, 0) / (1 + 0.78 * 0.8),
    ),
    "jaxopt group lasso away from 0": (
        prox.prox_group_lasso,
        (X, 0.6, 1.3),
        lambda: nearest(X, lambda y: 0.78 * np.linalg.norm(y)),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_these_are_right_in_value_and_all_derivatives(name: str) -> None:
    function, arguments, oracle = RIGHT[name]
    arguments = tuple(map(jnp.asarray, arguments))
    if oracle is not None:
        np.testing.assert_allclose(function(*arguments), oracle(), atol=2e-6)
    assert_derivatives(function, arguments)


def box_section(x: Any, upper: Any, total: Any) -> Any:
    return projection.projection_box_section(x, (-jnp.ones(5), upper, jnp.ones(5), total), check_feasible=False)


def polyhedron(x: Any, b: Any) -> Any:
    return projection.projection_polyhedron(x, (MATRIX, b, jnp.eye(5), 1.5 * jnp.ones(5)), check_feasible=False)


def affine(x: Any, b: Any) -> Any:
    return projection.projection_affine_set(x, (MATRIX, b))


ITERATED = {
    "affine set": (affine, (X, MATRIX @ A)),
    "box section": (box_section, (X, ONES, 0.3)),
    "polyhedron": (polyhedron, (X, MATRIX @ ONES)),
}


@pytest.mark.parametrize("name", ITERATED)
def test_what_jaxopt_iterates_has_no_forward_derivative(name: str) -> None:
    function, arguments = ITERATED[name]
    arguments = tuple(map(jnp.asarray, arguments))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(function, arguments, arguments)


@pytest.mark.parametrize(("name", "least"), [("box section", 1e-6), ("polyhedron", 1e-4)])
def test_what_jaxopt_iterates_is_not_exact(name: str, least: float) -> None:
    """Values of a loop that stops at its tolerance, in double precision."""
    function, arguments = ITERATED[name]
    if name == "box section":
        want = nearest(0 * X, bounds=[(-1, 1)] * 5, constraints=exactly(lambda y: y.sum() - 0.3))
    else:
        want = nearest(ONES, bounds=[(None, 1.5)] * 5, constraints=exactly(lambda y: MATRIX @ y - MATRIX @ ONES))
    error = np.abs(function(*map(jnp.asarray, arguments)) - want).max()
    assert least < error < 0.1, error


def test_not_a_number_at_the_origin() -> None:
    """0 / 0 in the branch not taken; optax's ball is right there."""
    origin = jnp.zeros(3)
    np.testing.assert_array_equal(jax.jacrev(optax.projections.projection_l2_ball)(origin), np.eye(3))
    assert jnp.isnan(jax.jacrev(lambda x: projection.projection_l2_ball(x, 1.0))(origin)).all()
    assert jnp.isnan(jax.jacrev(prox.prox_group_lasso)(origin)).all()


@pytest.mark.parametrize("simplex", [optax.projections.projection_simplex, projection.projection_simplex])
def test_the_simplex_of_large_numbers_and_of_none(simplex: Any) -> None:
    """Sums before differences: of 100 single-precision numbers about 10⁶ the projection sums to 1.54, not 1."""
    x = jnp.float32(1e6) + jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)
    assert abs(simplex(x).sum() - 1) > 0.1
    assert jnp.isnan(simplex(jnp.array([0.3, 2.0]), 0.0)).all()
    assert jnp.isnan(optax.projections.projection_l1_ball(jnp.array([0.3, 2.0]), 0.0)).all()


def test_ridge_penalises_half_of_what_it_says() -> None:
    """Its docstring has l2 ‖y‖², which is x / (1 + 2 l2); it computes the operator of l2/2 ‖y‖²."""
    np.testing.assert_allclose(prox.prox_ridge(jnp.asarray(X), 0.6), X / 1.6)
    np.testing.assert_allclose(prox.prox_non_negative_ridge(jnp.asarray(X), 0.6), np.maximum(X, 0) / 1.6)
    np.testing.assert_allclose(nearest(X, lambda y: 0.6 * (y**2).sum()), X / 2.2, atol=1e-6)


def test_elastic_net_of_a_tree_takes_no_array() -> None:
    tree = {"a": jnp.asarray(X)}
    np.testing.assert_allclose(prox.prox_elastic_net(tree, (0.6, 0.8))["a"], prox.prox_elastic_net(tree["a"]), atol=2)
    with pytest.raises(ValueError, match="pytree"):
        prox.prox_elastic_net(tree, (jnp.asarray(0.6), jnp.asarray(0.8)))


def least_squares(seed: int, n: int = 8) -> tuple[Any, Any]:
    numbers = np.random.default_rng(seed)
    data = numbers.normal(size=(4 * n, n))
    return jnp.asarray(data.T @ data + np.eye(n)), jnp.asarray(-3 * data.T @ numbers.normal(size=4 * n))


def test_gradients_of_quadratic_programs() -> None:
    """Least squares on a simplex by OSQP: values right, all gradients a fraction of what they ought to be."""
    n, solver = 8, jaxopt.OSQP(tol=1e-8, maxiter=20000)

    def value(budget: Any, Q: Any, c: Any) -> Any:
        equal, unequal = (jnp.ones((1, n)), budget[None]), (-jnp.eye(n), jnp.zeros(n))
        z = solver.run(params_obj=(Q, c), params_eq=equal, params_ineq=unequal).params.primal
        return (z**2).sum()

    value, gradient = jax.jit(value), jax.jit(jax.grad(value))
    parts = []
    for seed in range(6):
        problem, budget = least_squares(seed, n), jnp.ones(())
        want = (value(budget + 1e-4, *problem) - value(budget - 1e-4, *problem)) / 2e-4
        parts.append(gradient(budget, *problem) / want)
    assert 0.2 < min(parts) < max(parts) < 0.8, parts


def test_equality_constrained_quadratic_program() -> None:
    """Values hold; the derivative, by the same conjugate gradients as above, is 0.003 off where all are below 0.1."""
    (Q, c), E, d = least_squares(0, 5), jnp.asarray(MATRIX), jnp.ones(2)

    def primal(c: Any) -> Any:
        return jaxopt.EqualityConstrainedQP(tol=1e-12).run(params_obj=(Q, c), params_eq=(E, d)).params.primal

    inverse = np.linalg.inv(np.block([[Q, E.T], [E, np.zeros((2, 2))]]))[:5]
    np.testing.assert_allclose(primal(c), inverse @ np.concatenate([-c, d]), atol=1e-6)
    assert 1e-3 < np.abs(jax.jit(jax.jacrev(primal))(c) + inverse[:, :5]).max() < 1e-2
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jacfwd(primal)(c)


@pytest.mark.slow
def test_transport() -> None:
    """Marginals are met to 2·10⁻⁵ after seconds of compiling, and the gradient is 0."""
    similarity = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)))
    direction = jnp.asarray(np.random.default_rng(2).normal(size=(4, 4)))

    def value(similarity: Any) -> Any:
        return (projection.projection_birkhoff(similarity) ** 2).sum()

    want = (value(similarity + 1e-3 * direction) - value(similarity - 1e-3 * direction)) / 2e-3
    assert abs(want) > 0.1
    np.testing.assert_array_equal(jax.grad(value)(similarity), 0)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(value, (similarity,), (direction,))
