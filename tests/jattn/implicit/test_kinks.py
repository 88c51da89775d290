"""How near kinks are, against distances that are known, and what is said of derivatives beside them."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jattn import implicit
from jattn.implicit.kinks import nearest_kink

EXACT = implicit.Implicit(implicit.Dense())


def boxed(y: jax.Array) -> jax.Array:
    return jnp.clip(y, -1, 1)


def shrunk(y: jax.Array) -> jax.Array:
    return jaxopt.prox.prox_lasso(y, 1.0)


def of_itself(operator: Callable[..., Any], y: Any, rate: float = 1.0) -> tuple[np.ndarray, float]:
    held, margin = jax.jit(lambda y: nearest_kink(operator, lambda y: y, y, rate))(y)
    return np.asarray(held), float(margin)


@settings(max_examples=30, deadline=None)
@given(
    operator=st.sampled_from((boxed, shrunk)),
    n=st.sampled_from((1, 7, 300)),
    seed=st.integers(0, 2**16),
    near=st.sampled_from((0.3, 1e-2, 1e-4, 1e-6, 0)),
    rate=st.sampled_from((0.01, 1.0)),
    double=st.booleans(),
)
def test_a_lower_bound_and_not_a_loose_one(
    operator: Any, n: int, seed: int, near: float, rate: float, double: bool
) -> None:
    """Kinks are at -1 and 1 for each entry; one entry is as near to one as we say."""
    numbers = np.random.default_rng(seed)
    with jax.enable_x64(double):
        y = numbers.uniform(-3, 3, n)
        y[numbers.integers(n)] = numbers.choice([-1, 1]) * (1 + numbers.choice([-1, 1]) * near)
        y = jnp.asarray(y)
        held, margin = of_itself(operator, y, rate)
        y = np.asarray(y, float)
    within = np.abs(y) < 1
    off = np.abs(np.abs(y) - 1)
    sure = off > 1e-6
    np.testing.assert_array_equal(held[sure], (within if operator is shrunk else ~within)[sure])
    true = (off / np.where(held, rate, 1 + rate)).min()
    last_digit = 3 * np.finfo(np.float64 if double else np.float32).eps  # of the point
    assert margin <= true + last_digit / rate
    assert margin >= min(true, 1) / 4.2 - max(1e-8, 8 * last_digit / rate)


def ball(y: jax.Array) -> jax.Array:
    return optax.projections.projection_l2_ball(y, len(y) ** 0.5)


def group_lasso(y: jax.Array) -> jax.Array:
    return implicit.proximal.l2_norm(y, len(y) ** 0.5)


def l1_ball(y: jax.Array) -> jax.Array:
    return implicit.projections.l1_ball(y, float(len(y)))


def cone(y: jax.Array) -> jax.Array:
    """The second-order cone, moved so that all ones are on its border."""
    return implicit.projections.second_order_cone(y.at[-1].add((len(y) - 1) ** 0.5 - 1))


def half_space(y: jax.Array) -> jax.Array:
    return optax.projections.projection_halfspace(y, jnp.full(len(y), 0.3), 0.3 * len(y))


@pytest.mark.parametrize("n", [5, 2000])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("operator", [ball, group_lasso, l1_ball, cone, half_space])
def test_kinks_of_what_is_not_separable(operator: Any, n: int, double: bool) -> None:
    """At all ones, an edge, the margin is 0, but for rounding of long sums; it is not off it, to either side."""
    with jax.enable_x64(double):
        edge = jnp.ones(n)
        assert of_itself(operator, edge)[1] <= (1e-6 if double else 1e-4)
        for by in (-0.5, 0.5):
            assert of_itself(operator, edge.at[-1].add(by))[1] >= 1e-3 / n**0.5
            assert of_itself(operator, edge + by)[1] >= 1e-3


def test_edges_of_matrices() -> None:
    """Where an eigenvalue is 0, not where all are 0.1 or more."""
    rows = np.random.default_rng(0).normal(size=(5, 6))
    singular = rows.T @ rows
    with jax.enable_x64(True):
        cone = implicit.projections.positive_semidefinite_cone
        assert of_itself(cone, jnp.asarray(singular))[1] <= 1e-6
        for by in (-0.1, 0.1):
            assert of_itself(cone, jnp.asarray(singular + by * np.eye(6)))[1] >= 1e-3


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "operator", [lambda y: y / 3, lambda y: implicit.proximal.negative_log(y, 0.5), jax.nn.softmax, jnp.tanh]
)
def test_what_is_smooth_has_no_kinks(operator: Any, double: bool) -> None:
    """But bends: where it bends anew within the way the margin ends."""
    with jax.enable_x64(double):
        y = 2 * jax.random.normal(jax.random.key(0), (3000,))
        assert of_itself(operator, y)[1] >= 1e-3


def soft(theta: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sign(theta) * jnp.maximum(jnp.abs(theta) - weight, 0)


def lasso(check: Any, off: float, curvature: float = 1.0, rate: float = 1.0) -> Callable[..., Any]:
    """½ curvature (x - θ)² + curvature · weight · |x|, solved by its closed form, less `off`."""

    def objective(x: jax.Array, theta: jax.Array) -> jax.Array:
        return 0.5 * curvature * ((x - theta) ** 2).sum()

    condition = implicit.proximal_gradient(
        objective, lambda y, weight, scale: jaxopt.prox.prox_lasso(y, weight, curvature * scale), rate
    )

    def solver(init: Any, theta: jax.Array, weight: jax.Array) -> jax.Array:
        found = soft(theta, weight)
        return jnp.where(found != 0, found - off, 0)

    return implicit.root(condition, solver, adjoint=EXACT, check=check)


def total(solve: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.grad(lambda theta: solve(jnp.zeros_like(theta), theta, jnp.asarray(1.0)).value.sum()))


@pytest.mark.parametrize(("curvature", "rate"), [(1.0, 1.0), (1.0, 0.01), (1000.0, 1.0), (1000.0, 1e-3)])
def test_a_weight_at_the_edge_of_the_support_is_spoken_of(curvature: float, rate: float) -> None:
    """θ is 1 for a weight of 1: to the left the derivative is 0, to the right 1. Whatever curvature and rate."""
    slope = total(lasso("raise", 0.0, curvature, rate))
    np.testing.assert_allclose(slope(jnp.array([3.0, 0.5])), [1, 0], atol=1e-5)
    with pytest.raises(Exception, match="a kink near"):
        jax.block_until_ready(slope(jnp.array([3.0, 1.0])))


def test_a_support_that_may_be_another_is_spoken_of() -> None:
    """Off by 5e-4, what is 3e-4 may rightly be 0; what is 3e-2 may not."""
    slope = total(lasso("raise", 5e-4))
    np.testing.assert_allclose(slope(jnp.array([3.0, 1.03])), 1, atol=1e-5)
    with pytest.raises(Exception, match="a kink near"):
        jax.block_until_ready(slope(jnp.array([3.0, 1.0008])))


def test_each_of_a_batch_is_judged_and_residuals_alone_on_request() -> None:
    thetas = jnp.array([[3.0, 0.5], [3.0, 1.0], [-2.0, 0.2]])
    found = jax.vmap(total(lasso("poison", 0.0)))(thetas)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), [False, True, False])
    condition = implicit.proximal_gradient(lambda x, theta: 0.5 * ((x - theta) ** 2).sum(), jaxopt.prox.prox_lasso)
    without = implicit.root(
        replace(condition, activity=None), lambda _, theta, weight: soft(theta, weight), check="raise"
    )
    slope = jax.grad(lambda theta: without(theta, theta, 1.0).value.sum())(thetas[1])
    assert slope[0] == 1
    assert slope[1] in (0, 1)


def test_blocks_and_boxes_and_what_is_held() -> None:
    """A lasso beside a box, with rates of their own: what is held is told entry by entry."""

    def objective(inner: tuple, target: tuple) -> jax.Array:
        return 0.5 * sum(((x - t) ** 2).sum() for x, t in zip(inner, target, strict=True))

    proximals = (jaxopt.prox.prox_lasso, lambda y, bounds, _: jaxopt.projection.projection_box(y, bounds))
    condition = implicit.block_proximal_gradient(objective, proximals, (0.5, 0.25))
    solve = implicit.root(
        condition,
        lambda _, target, rest: (soft(target[0], rest[0]), jnp.clip(target[1], *rest[1])),
        adjoint=EXACT,
        check="raise",
    )

    def loss(second: float) -> tuple[jax.Array, Any]:
        target = jnp.array([2.0, 0.5]), jnp.array([second, 0.3, -5.0])
        solution = solve(target, target, (jnp.asarray(1.0), (-1.0, 1.0)))
        return sum(each.sum() for each in solution.value), solution.certificate

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slope, certificate = jax.grad(loss, has_aux=True)(0.8)
    assert slope == 1
    np.testing.assert_array_equal(certificate.active, [False, True, False, False, True])
    assert 0.02 < certificate.margin <= 0.2
    with pytest.raises(Exception, match="a kink near"):
        jax.grad(loss, has_aux=True)(1.0)


def test_a_cone_at_its_apex_is_spoken_of() -> None:
    """min θx with x + s = 1, s ≥ 0 has s = 0 and y = -θ: at θ = 0 every x ≤ 1 will do, at -1 only 1."""
    condition = implicit.conic(jax.nn.relu)

    def slope(cost: float) -> jax.Array:
        def solver(init: Any, A: Any, b: Any, c: jax.Array) -> Any:
            return implicit.ConeSolution(b, -c)

        solve = implicit.root(condition, solver, adjoint=EXACT, check="poison")
        init = implicit.ConeSolution(jnp.zeros(1), jnp.zeros(1))
        return jax.grad(lambda b: solve(init, jnp.ones((1, 1)), b, jnp.full(1, cost)).value.primal[0])(jnp.ones(1))

    assert slope(-1.0) == 1
    assert np.isnan(slope(0.0))


def test_outer_steps_are_judged_too() -> None:
    """A box's bound that the solution just reaches, among outer variables that move it there."""

    def objective(x: jax.Array, theta: jax.Array) -> jax.Array:
        return 0.5 * ((x - theta) ** 2).sum()

    whole = implicit.projected_gradient(objective, lambda y, _: jnp.clip(y, -1, 1))
    condition = implicit.Condition(
        lambda x, theta: whole.residual(x, theta, None), activity=lambda x, theta: whole.activity(x, theta, None)
    )
    problem = implicit.hypergradient(
        lambda x, _: x.sum(), condition, lambda _, theta, __: jnp.clip(theta, -1, 1), check="poison"
    )
    step = jax.jit(problem.step)
    _, gradient, _, report = step(problem.init(jnp.zeros(3)), jnp.array([0.3, 5.0, -0.9]))
    np.testing.assert_allclose(gradient, [1, 0, 1], atol=1e-6)
    np.testing.assert_array_equal(report.active, [False, True, False])
    assert 0.01 < report.margin <= 0.1
    _, gradient, _, report = step(problem.init(jnp.zeros(3)), jnp.array([0.3, 1.0, -0.9]))
    assert np.isnan(gradient).all()
    assert report.margin == 0


@pytest.mark.parametrize("adjoint", [EXACT, implicit.Unrolled()])
@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd, lambda f: jax.jit(jax.grad(f))])
def test_operator_and_objective_may_close_over_what_is_traced(adjoint: Any, mode: Any) -> None:
    """x = soft(θ, w) with w = exp(θ₀) / 10: the derivative of its sum is that by θ, where not 0, and by w."""

    def value(theta: jax.Array) -> jax.Array:
        weight = jnp.exp(theta[0]) / 10

        def step(x: jax.Array, *_: Any) -> jax.Array:
            return jaxopt.prox.prox_lasso(theta, weight, 1.0)

        condition = implicit.proximal_gradient(
            lambda x, _: 0.5 * ((x - theta) ** 2).sum(), lambda y, _, rate: jaxopt.prox.prox_lasso(y, weight, rate)
        )
        solve = implicit.root(condition, implicit.Iteration(step, 3), adjoint=adjoint, check="raise")
        return (solve(jnp.zeros(3), None, None).value * jnp.array([1.0, 1, 2])).sum()

    slope = np.exp(2.0) / 10
    np.testing.assert_allclose(mode(value)(jnp.array([2.0, 0.5, -3])), [1 + slope, 0, 2], rtol=1e-5)
