"""Every condition on a problem of its own: derivatives against closed forms or central differences in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import scipy.optimize

from jattn import implicit
from jattn.implicit import Dense, Gmres, Implicit, Minres, PrimalDual

NUMBERS = np.random.default_rng(0)
ROOT = NUMBERS.normal(size=(12, 4))
HESSIAN, TARGET = ROOT.T @ ROOT / 12 + 0.5 * np.eye(4), np.array([1.0, -2.0, 0.5, 3.0])
EXACT = Implicit(Dense())


@pytest.fixture(autouse=True)
def _double() -> Any:
    with jax.enable_x64(True):
        yield


def quadratic(x: jax.Array, target: jax.Array) -> jax.Array:
    return 0.5 * x @ HESSIAN @ x - target @ x


def long(condition: implicit.Condition, start: Any) -> Callable[..., Any]:
    """Steps of a fixed point until nothing moves."""

    def solver(init: Any, *outer: Any) -> Any:
        def step(_: int, inner: Any) -> Any:
            return jax.tree.map(jnp.add, inner, condition.residual(inner, *outer))

        return jax.lax.fori_loop(0, 1000, step, init)

    return lambda init, *outer: solver(start, *outer)


def derivatives_are_differences(condition: implicit.Condition, start: Any, outer: tuple, adjoint: Any = EXACT) -> None:
    """Of all numbers of the solution by all of the outer variables; forward and reverse."""
    solve = implicit.root(condition, long(condition, start), adjoint=adjoint, check="raise", tolerance=1e-9)

    def value(*outer: Any) -> jax.Array:
        return jax.flatten_util.ravel_pytree(solve(start, *outer).value)[0]

    found = jax.jit(jax.jacrev(value, tuple(range(len(outer)))))(*outer)
    forward = jax.jit(jax.jacfwd(value, tuple(range(len(outer)))))(*outer)
    flat, restore = jax.flatten_util.ravel_pytree(outer)
    quick = jax.jit(lambda flat: value(*restore(flat)))
    for index in range(flat.size):
        move = 1e-5 * jnp.zeros_like(flat).at[index].set(1)
        want = (quick(flat + move) - quick(flat - move)) / 2e-5
        for each in (found, forward):
            have = np.concatenate([np.reshape(leaf, (len(want), -1)) for leaf in jax.tree.leaves(each)], axis=1)
            np.testing.assert_allclose(have[:, index], want, atol=1e-6)


def test_projected_gradient() -> None:
    """Onto a box: one side is active for some, none for others."""
    condition = implicit.projected_gradient(quadratic, jaxopt.projection.projection_box, 0.3)
    outer = (jnp.asarray(TARGET), (jnp.full(4, -0.5), jnp.array([0.4, 5.0, 0.3, 1.0])))
    derivatives_are_differences(condition, jnp.zeros(4), outer)


def test_proximal_gradient() -> None:
    """The lasso; one weight is out of the support."""
    condition = implicit.proximal_gradient(quadratic, jaxopt.prox.prox_lasso, 0.3)
    derivatives_are_differences(
        condition, jnp.zeros(4), (jnp.asarray(TARGET), jnp.asarray(0.8)), Implicit(Gmres(1e-12))
    )
    solution = jax.jit(long(condition, jnp.zeros(4)))(jnp.zeros(4), TARGET, 0.8)
    assert (solution == 0).any()
    assert (solution != 0).sum() > 1


def test_derivatives_do_not_depend_on_the_rate() -> None:
    found = []
    for rate in (0.05, 0.4):
        condition = implicit.proximal_gradient(quadratic, jaxopt.prox.prox_lasso, rate)
        solve = implicit.root(condition, long(condition, jnp.zeros(4)), adjoint=EXACT, check="raise")
        slope = jax.jit(jax.jacrev(lambda weight, solve=solve: solve(jnp.zeros(4), TARGET, weight).value))
        found.append(slope(0.8))
    np.testing.assert_allclose(*found, atol=1e-10)


def test_block_proximal_gradient() -> None:
    """A lasso of two weights beside two that are not to be negative, with rates of their own."""

    def objective(inner: tuple, target: jax.Array) -> jax.Array:
        return quadratic(jnp.concatenate(inner), target)

    proximals = (jaxopt.prox.prox_lasso, lambda x, _, __: jnp.maximum(x, 0))
    condition = implicit.block_proximal_gradient(objective, proximals, (0.2, 0.4))
    start = (jnp.zeros(2), jnp.zeros(2))
    derivatives_are_differences(condition, start, (jnp.asarray(TARGET), (jnp.asarray(0.3), None)))
    with pytest.raises(ValueError, match="rates must be as many as the 2 proximals; got 1"):
        implicit.block_proximal_gradient(objective, proximals, (0.2,))


def test_mirror_descent() -> None:
    """On the simplex by logarithms and softmax; the derivative is that of the projected gradient too."""
    condition = implicit.mirror_descent(quadratic, lambda y, _: jax.nn.softmax(y), jnp.log, 0.5)
    start, inside = jnp.full(4, 0.25), np.array([0.1, 0.2, 0.3, 0.4])
    target = jnp.asarray(HESSIAN @ inside)
    solve = implicit.root(condition, long_map(condition), adjoint=EXACT, check="raise")
    projected = implicit.projected_gradient(quadratic, lambda y, _: jaxopt.projection.projection_simplex(y), 0.3)
    other = implicit.root(projected, long(projected, start), adjoint=EXACT, check="raise")
    mirrored, euclidean = (
        jax.jit(jax.jacfwd(lambda target, each=each: each(start, target, None).value))(target)
        for each in (solve, other)
    )
    value = jax.jit(lambda target: solve(start, target, None).value)(target)
    np.testing.assert_allclose(value, inside, rtol=1e-8)
    np.testing.assert_allclose(mirrored, euclidean, atol=1e-7)


def long_map(condition: implicit.Condition) -> Callable[..., Any]:
    def solver(init: Any, *outer: Any) -> Any:
        return jax.lax.fori_loop(0, 2000, lambda _, x: x + condition.residual(x, *outer), init)

    return solver


def test_newton_gives_back_the_condition_that_it_solves() -> None:
    condition = implicit.newton(implicit.stationary(lambda x, t: quadratic(x, t) + (x**4).sum()))
    derivatives_are_differences(condition, jnp.zeros(4), (jnp.asarray(TARGET),))


LIMITS = np.array([0.5, 1.0, 2.0])
ROWS = np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]])


def by_slsqp(target: Any, limits: Any, total: Any) -> PrimalDual:
    """Solution and multipliers: the problem below, the active set by SLSQP, then exactly."""
    guess = scipy.optimize.minimize(
        lambda x: 0.5 * x @ HESSIAN @ x - target @ x,
        np.zeros(4),
        jac=lambda x: HESSIAN @ x - target,
        constraints=[
            {"type": "eq", "fun": lambda x: x @ np.array([1.0, -1, 2, 0]) - total},
            {"type": "ineq", "fun": lambda x: limits - ROWS @ x},
        ],
        tol=1e-12,
    ).x
    active = limits - ROWS @ guess < 1e-5
    rows = np.concatenate([[[1.0, -1, 2, 0]], ROWS[active]])
    system = np.block([[HESSIAN, rows.T], [rows, np.zeros((len(rows),) * 2)]])
    found = np.linalg.solve(system, np.concatenate([target, [total], limits[active]]))
    multipliers = np.zeros(3)
    multipliers[active] = found[5:]
    return PrimalDual(found[:4], found[4:5], multipliers)


@pytest.mark.parametrize("linear_solver", [Dense(), Minres(1e-12)])
@pytest.mark.parametrize("name", ["functions", "matrices"])
def test_kkt_and_quadratic_programs(name: str, linear_solver: Any) -> None:
    """Some constraints are active; derivatives of solution and multipliers by all that the problem is made of."""
    outer = (jnp.asarray(TARGET), jnp.asarray(LIMITS), jnp.asarray(0.2))
    assert 0 < (by_slsqp(*outer).inequality > 0).sum() < 3
    solver = implicit.on_host(lambda init, *outer: by_slsqp(*outer))
    init = PrimalDual(jnp.zeros(4), jnp.zeros(1), jnp.zeros(3))
    if name == "functions":
        condition = implicit.kkt(
            lambda x, target, *_: quadratic(x, target),
            lambda x, _, __, total: jnp.array([1.0, -1, 2, 0]) @ x[:, None] - total,
            lambda x, _, limits, __: ROWS @ x - limits,
        )
        solve = implicit.root(condition, solver, adjoint=Implicit(linear_solver), check="raise", tolerance=1e-8)
    else:
        program = implicit.root(
            implicit.kkt_of_quadratic_program(),
            lambda init, objective, equality, inequality: solver(init, -objective[1], inequality[1], equality[1][0]),
            adjoint=Implicit(linear_solver),
            check="raise",
            tolerance=1e-8,
        )

        def solve(init: Any, target: Any, limits: Any, total: Any) -> Any:
            equality = jnp.array([[1.0, -1, 2, 0]]), total[None]
            return program(init, (jnp.asarray(HESSIAN), -target), equality, (jnp.asarray(ROWS), limits))

    made = jax.jit(solve)(init, *outer)
    np.testing.assert_array_equal(made.certificate.active, by_slsqp(*outer).inequality > 0)
    slack = np.where(made.certificate.active, made.value.inequality, LIMITS - ROWS @ made.value.primal)
    np.testing.assert_allclose(made.certificate.margin, slack.min(), rtol=1e-9)
    for mode in (jax.jacrev, jax.jacfwd):
        value = lambda *outer: jax.flatten_util.ravel_pytree(solve(init, *outer).value)[0]  # noqa: E731
        found = jax.jit(mode(value, (0, 1, 2)))(*outer)
        flat, restore = jax.flatten_util.ravel_pytree(outer)
        have = np.concatenate([np.reshape(each, (8, -1)) for each in found], axis=1)
        for index in range(flat.size):
            move = 1e-5 * np.eye(flat.size)[index]
            above, below = (
                jax.flatten_util.ravel_pytree(by_slsqp(*map(np.asarray, restore(flat + sign * move))))[0]
                for sign in (1, -1)
            )
            np.testing.assert_allclose(have[:, index], (above - below) / 2e-5, atol=1e-6)


def test_kkt_of_constraints_that_are_not_affine() -> None:
    """The nearest point x of a ball: of u = θ/‖θ‖, dx/dθ = (1 - uuᵀ) r/‖θ‖ and dx/dr = u; and of a sphere, as equality.

    Of ½‖x - θ‖² + μ/2 (‖x‖² - r²) the multiplier is ‖θ‖/r - 1, negative on the sphere for θ inside.
    """

    def square(x: jax.Array, theta: jax.Array, radius: jax.Array) -> jax.Array:
        return 0.5 * (x @ x - radius**2)[None]

    def distance(x: jax.Array, theta: jax.Array, radius: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((x - theta) ** 2)

    def solver(init: PrimalDual, theta: jax.Array, radius: jax.Array) -> PrimalDual:
        size = jnp.linalg.norm(theta)
        multiplier = (size / radius - 1)[None]
        either = (multiplier, None) if init.inequality is None else (None, multiplier)
        return PrimalDual(radius * theta / size, *either)

    conditions = {"ball": implicit.kkt(distance, None, square), "sphere": implicit.kkt(distance, square, None)}
    for name, theta in (("ball", [3.0, -1.0, 2.0]), ("sphere", [3.0, -1.0, 2.0]), ("sphere", [0.3, 0.1, -0.2])):
        zero = jnp.zeros(1)
        init = PrimalDual(jnp.zeros(3), *((None, zero) if name == "ball" else (zero, None)))
        solve = implicit.root(conditions[name], solver, adjoint=EXACT, check="raise", tolerance=1e-9)
        theta, radius = jnp.asarray(theta), jnp.asarray(1.5)
        size, unit = np.linalg.norm(theta), np.asarray(theta) / np.linalg.norm(theta)
        want = (np.eye(3) - np.outer(unit, unit)) * 1.5 / size, unit
        curvature = -1.5 / size**2 * np.einsum("i,jk->ijk", unit, np.eye(3) - np.outer(unit, unit))
        curvature = curvature + np.swapaxes(curvature, 0, 1) + np.swapaxes(curvature, 0, 2)
        for mode in (jax.jacfwd, jax.jacrev):

            def primal(theta: jax.Array, radius: jax.Array, solve: Any = solve, init: Any = init) -> jax.Array:
                return solve(init, theta, radius).value.primal

            found = jax.jit(mode(primal, (0, 1)))(theta, radius)
            np.testing.assert_allclose(found[0], want[0], atol=1e-9)
            np.testing.assert_allclose(found[1], want[1], atol=1e-9)
            second = jax.jit(jax.jacfwd(mode(primal)))(theta, radius)
            np.testing.assert_allclose(second, curvature, atol=1e-8)


def test_a_weakly_active_inequality_is_spoken_of() -> None:
    """min ½(x - θ)² with x ≤ 0 at θ = 0: the derivative jumps from 1 to 0 there."""
    condition = implicit.kkt(lambda x, theta: 0.5 * (x - theta) ** 2, None, lambda x, _: x[None])

    def solver(init: PrimalDual, theta: jax.Array) -> PrimalDual:
        return PrimalDual(jnp.minimum(theta, 0), None, jnp.maximum(theta, 0)[None])

    init = PrimalDual(jnp.zeros(()), None, jnp.zeros(1))
    solve = implicit.root(condition, solver, adjoint=EXACT, check="raise")
    slope = jax.jit(jax.grad(lambda theta: solve(init, theta).value.primal))
    assert slope(0.1) == 0
    assert slope(-0.1) == 1
    with pytest.raises(Exception, match="weakly active"):
        jax.block_until_ready(slope(0.0))


def test_an_active_set_that_may_be_another_is_spoken_of() -> None:
    """The same at θ < 0, where x = θ and nothing is active; but the solver stops where its multiplier still is."""
    condition = implicit.kkt(lambda x, theta: 0.5 * (x - theta) ** 2, None, lambda x, _: x[None])
    init = PrimalDual(jnp.zeros(()), None, jnp.zeros(1))

    def slope(near: float, check: Any) -> jax.Array:
        found = PrimalDual(jnp.asarray(-near), None, jnp.asarray([3 * near]))
        solve = implicit.root(condition, lambda *_: found, adjoint=EXACT, check=check)
        return jax.grad(lambda theta: solve(init, theta).value.primal)(-5 * near)

    assert slope(5e-5, None) == 0  # where 1 is right
    with pytest.raises(Exception, match="weakly active"):
        slope(5e-5, "raise")


def test_conic() -> None:
    """The nearest point of a second-order cone's slice: min t with ‖x - θ‖ ≤ t, aᵀx = 1, by its closed form.

    x = θ + a (1 - aᵀθ)/aᵀa, t = |1 - aᵀθ|/‖a‖.
    """
    a = np.array([1.0, 2.0])

    def project(point: jax.Array) -> jax.Array:
        """Onto the dual of {0} x the cone of three numbers, the first the height."""
        height, rest = point[1], point[2:]
        size = jnp.linalg.norm(rest)
        onto = 0.5 * (1 + height / size) * jnp.concatenate([size[None], rest])
        inside = jnp.where(size <= height, point[1:], jnp.where(size <= -height, 0, onto))
        return jnp.concatenate([point[:1], inside])

    rows = jnp.array([[0.0, *a], [-1, 0, 0], [0, -1, 0], [0, 0, -1]])
    costs = jnp.array([1.0, 0, 0])

    def solver(init: Any, A: Any, b: jax.Array, c: Any) -> Any:
        theta = -b[2:]
        x = theta + a * (1 - a @ theta) / (a @ a)
        distance = jnp.linalg.norm(x - theta)
        slack = jnp.concatenate([jnp.zeros(1), distance[None], x - theta])
        # y is in the cone too, with yᵀs = 0: (1, -(x - θ)/t), and for the equality what makes Aᵀy + c zero.
        dual = jnp.concatenate([jnp.zeros(1), jnp.ones(1), -(x - theta) / distance])
        dual = dual.at[0].set((dual[2:] @ a) / (a @ a))
        return implicit.ConeSolution(jnp.concatenate([distance[None], x]), dual - slack)

    init = implicit.ConeSolution(jnp.zeros(3), jnp.zeros(4))
    solve = implicit.root(implicit.conic(project), solver, adjoint=EXACT, check="raise", tolerance=1e-10)

    def point(theta: jax.Array) -> jax.Array:
        return solve(init, rows, jnp.concatenate([jnp.array([1.0, 0]), -theta]), costs).value.primal

    theta = jnp.array([0.3, -0.7])
    closed = np.concatenate(
        [-np.sign(1 - a @ theta) * a[None] / np.linalg.norm(a), np.eye(2) - np.outer(a, a) / (a @ a)]
    )
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(mode(point))(theta), closed, atol=1e-9)
