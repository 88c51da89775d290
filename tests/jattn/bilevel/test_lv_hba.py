"""LV-HBA: its value function against central differences, its toys against their answers, and its warnings."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_answers import convex_toy, toy_error, toy_method, toy_start
from scipy.optimize import minimize

from jattn.bilevel import (
    LVHBA,
    MultiplierRadiusWarning,
    Problem,
    Proximity,
    StepSizeWarning,
    at_inner_solution,
    extrapolate,
    growing_penalty,
    onto_affine,
    saddle_point,
    solve,
    value_function,
)
from jattn.bilevel.lv_hba import largest_singular_value


def degenerate_problem() -> Problem:
    """An inner problem with many solutions (singular Hessian), an equality and three inequalities."""
    generator = np.random.default_rng(0)
    root, cross, rows = (generator.normal(size=size) for size in ((2, 4), (4, 3), (4, 7)))
    right = np.array([-3.0, 0.5, 30.0, 0.3])

    def inner(x: jax.Array, y: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((root @ y) ** 2) + jnp.sin(x) @ cross.T @ y

    def rows_of(x: jax.Array, y: jax.Array) -> jax.Array:
        return rows @ jnp.concatenate([x**2 / 2, y]) - right

    return Problem(
        lambda x, y: jnp.sum(x) + jnp.sum(y),
        inner,
        inequality=lambda x, y: rows_of(x, y)[:3],
        equality=lambda x, y: rows_of(x, y)[3:],
    )


def test_gradients_of_the_value_function_are_central_differences() -> None:
    """To 1e-8 in every block, with an active and an inactive constraint among the rows."""
    with jax.enable_x64(True):
        problem, proximity = degenerate_problem(), Proximity(1.3, 0.7, 20.0)
        generator = np.random.default_rng(10)
        point = {
            "outer": jnp.asarray(generator.normal(size=3)),
            "inner": jnp.asarray(generator.normal(size=4)),
            "centers": {
                "inequality": jnp.asarray(generator.uniform(0, 1, size=3)),
                "equality": jnp.asarray(generator.normal(size=1)),
            },
        }

        @jax.jit
        def value(point: dict) -> jax.Array:
            return value_function(problem, proximity, **point, tolerance=1e-13)

        saddle = jax.jit(lambda point: saddle_point(problem, proximity, **point, tolerance=1e-13))(point)
        limits = saddle.multipliers["inequality"]
        assert limits.min() == 0 < limits.max() < 20  # one row inactive, one active and not at its bound
        gradient = jax.jit(jax.grad(value))(point)
        flat, unravel = jax.flatten_util.ravel_pytree(point)
        width = 1e-4
        ahead, behind = (
            jax.vmap(lambda way, s=sign: value(unravel(flat + s * way)))(width * np.eye(flat.size)) for sign in (1, -1)
        )
        differences = (ahead - behind) / (2 * width)
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(gradient)[0], differences, atol=1e-8)
        # The formulas of the paper.
        np.testing.assert_allclose(gradient["inner"], (point["inner"] - saddle.proximal) / 1.3, atol=1e-10)
        for name, centers in point["centers"].items():
            np.testing.assert_allclose(
                gradient["centers"][name], (saddle.multipliers[name] - centers) / 0.7, atol=1e-10
            )


def test_value_function_of_an_unconstrained_problem_is_the_moreau_envelope() -> None:
    """Of a quadratic ½yᵀHy - xᵀy: proximal point (H + 1/γ)⁻¹ (x + y/γ)."""
    with jax.enable_x64(True):
        hessian = np.diag([0.0, 1.0, 4.0])
        problem = Problem(lambda x, y: jnp.sum(y), lambda x, y: 0.5 * y @ hessian @ y - x @ y)
        x, y = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.1, -1.0])
        nearest = np.linalg.solve(hessian + np.eye(3) / 1.5, x + y / 1.5)
        envelope = 0.5 * nearest @ hessian @ nearest - x @ nearest + np.sum((nearest - y) ** 2) / 3
        np.testing.assert_allclose(
            jax.jit(lambda: value_function(problem, Proximity(1.5), x, y, {}, tolerance=1e-12))(), envelope, rtol=1e-10
        )


def test_toy_reaches_its_answer_as_the_penalty_grows() -> None:
    """Relative error within 0.05, 0.025 and 0.012 after 200, 1000 and 5000 iterations; times the penalty, constant."""
    run = jax.jit(lambda x, y: solve(convex_toy(100), toy_method(), x, y, steps=5000, record_every=200).records)
    records = run(*toy_start(100))
    error = toy_error(records.outer)
    for iterations, bar in ((200, 0.05), (1000, 0.025), (5000, 0.012)):
        assert error[iterations // 200 - 1] <= bar
    scaled = (error * records.measures["penalty"])[4:]
    assert scaled.max() / scaled.min() < 1.1
    assert records.violation.max() < 1e-3
    assert records.measures["value_gap"].min() > -1e-3
    assert (np.diff(records.measures["value_gap"][4:]) < 1e-4).all()
    assert (np.diff(records.measures["stationarity"][::5]) < 0).all()
    np.testing.assert_allclose(records.inner[-1, 0].mean(), 0.7, atol=0.02)
    np.testing.assert_allclose(records.inner[-1, 1].mean(), -0.4, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 1000])
def test_toy_reaches_its_answer_in_the_long_run(size: int) -> None:
    run = jax.jit(lambda x, y: solve(convex_toy(size), toy_method(), x, y, steps=20_000, record_every=200).records)
    error = toy_error(run(*toy_start(size)).outer)
    for iterations, bar in ((200, 0.05), (1000, 0.025), (5000, 0.012), (20_000, 0.007)):
        assert error[iterations // 200 - 1] <= bar


def test_extrapolating_two_penalties_removes_the_linear_bias() -> None:
    """The bias of a constant penalty halves as it doubles, and its linear part goes."""

    @jax.jit
    @jax.vmap
    def at(penalty: jax.Array) -> jax.Array:
        method = toy_method(penalty=growing_penalty(penalty, 0.0))
        return solve(convex_toy(50), method, *toy_start(50), steps=2000, record_every=2000).state.outer

    solutions = at(jnp.array([10.0, 20.0, 40.0]))
    errors = toy_error(solutions)
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2, atol=0.15)
    assert toy_error(extrapolate(solutions[0], solutions[1])) < 0.1 * errors[1]


def test_constraint_rows_may_be_multiplied() -> None:
    """g and 10 g have the same path; multipliers too, as they are those of scaled rows."""
    ends = [
        jax.jit(lambda x, y, f=factor: solve(convex_toy(20, f), toy_method(), x, y, steps=300).state)(*toy_start(20))
        for factor in (1.0, 10.0)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        *((end.outer, end.inner, end.memory) for end in ends),
    )


def test_equality_multipliers_have_either_sign() -> None:
    """The toy's is -1 for the row as it is given, which is divided by its norm √(3n)."""
    state = jax.jit(lambda x, y: solve(convex_toy(20), toy_method(), x, y, steps=4000, record_every=4000).state)(
        *toy_start(20)
    )
    multiplier = state.memory["multipliers"]["equality"] / state.row_norms["equality"]
    np.testing.assert_allclose(multiplier, -1, atol=0.05)


def test_unconstrained_is_the_moreau_envelope_method() -> None:
    """MEHA, written out for quadratics in numpy."""
    with jax.enable_x64(True):
        hessian, target = np.array([[2.0, 0.3], [0.3, 0.5]]), np.array([1.0, -1.0])
        problem = Problem(
            lambda x, y: 0.5 * jnp.sum((y - target) ** 2) + 0.05 * x @ x, lambda x, y: 0.5 * y @ hessian @ y - x @ y
        )
        method = LVHBA(0.05, 1.0, 0.1, growing_penalty(2.0, 0.25), Proximity(1.5))
        x, y = np.array([0.5, 0.2]), np.array([0.1, 0.4])
        ours = jax.jit(lambda x, y: solve(problem, method, x, y, steps=50).state)(jnp.asarray(x), jnp.asarray(y))
        theta = y
        for k in range(50):
            penalty = 2.0 * (k + 1) ** 0.25
            theta = theta - 0.1 * (hessian @ theta - x + (theta - y) / 1.5)
            of_x = 0.1 * x / penalty - y + theta
            of_y = (y - target) / penalty + hessian @ y - x - (y - theta) / 1.5
            x, y = x - 0.05 * of_x, y - 0.05 * of_y
        np.testing.assert_allclose(ours.outer, x, rtol=1e-12)
        np.testing.assert_allclose(ours.inner, y, rtol=1e-12)
        assert ours.memory["multipliers"] == {}


def test_strongly_convex_toy_ends_where_its_hyper_objective_does() -> None:
    """The paper's first toy, smaller: a local minimum by scipy of the objective at exact inner solutions."""
    size, rows = 20, 18
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        of_inner, of_outer, limits = (generator.normal(size=(n, size)) for n in (rows, rows, rows // 2))
        c, d = generator.normal(size=(2, size)) / size**0.5

        def both(x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.concatenate([of_inner @ y + of_outer @ x, limits @ x])

        problem = Problem(
            lambda x, y: jnp.sin(c @ x + d @ y) + jnp.log(jnp.sum((x + y) ** 2) + 1),
            lambda x, y: 0.5 * jnp.sum((x - y) ** 2),
            equality=lambda x, y: of_inner @ y + of_outer @ x,
            project_joint=onto_affine(both, jnp.zeros(size), jnp.zeros(size)),
        )
        pseudo_inverse = jnp.asarray(np.linalg.pinv(of_inner))

        def exact(x: jax.Array) -> jax.Array:
            return x - pseudo_inverse @ (of_inner @ x + of_outer @ x)

        x = generator.normal(size=size)
        x = x - np.linalg.pinv(limits) @ limits @ x
        method, x = LVHBA(0.1, 0.5, 0.1, growing_penalty(1.0, 0.3)), jnp.asarray(x)
        records = jax.jit(lambda: solve(problem, method, x, exact(x), steps=3000, record_every=300).records)()
        measured = jax.vmap(lambda x, y: at_inner_solution(problem, exact, x, y))(records.outer, records.inner)
        free = np.linalg.svd(limits)[2][rows // 2 :].T
        hyper = jax.jit(jax.value_and_grad(lambda z: problem.outer(free @ z, exact(free @ z))))
        local = minimize(hyper, free.T @ records.outer[-1], jac=True, method="BFGS")
        start = problem.outer(x, exact(x))
        assert measured.hyper_objective[-1] - local.fun < 0.01 * (start - local.fun)
        assert records.violation.max() < 1e-9
        assert (measured.inner_gap > -1e-9).all()
        assert measured.inner_gap[-1] < 1e-2


def test_power_iteration_finds_the_norm_of_a_jacobian() -> None:
    with jax.enable_x64(True):
        matrix = np.random.default_rng(0).normal(size=(5, 3))
        found = largest_singular_value(lambda x: {"a": matrix @ x["b"]}, {"b": jnp.zeros(3)}, jax.random.key(0), 500)
        np.testing.assert_allclose(found, np.linalg.norm(matrix, 2), rtol=1e-10)


def test_a_saddle_step_too_long_is_warned_of() -> None:
    with pytest.warns(StepSizeWarning, match=r"saddle_step 2 is above 0\.3"):
        solve(convex_toy(20), toy_method(saddle_step=2.0), *toy_start(20), steps=1)


def test_a_radius_too_small_is_warned_of() -> None:
    method = toy_method(proximity=Proximity(2.0, 2.0, 0.1))
    with pytest.warns(MultiplierRadiusWarning, match=r"proximity\.radius 0\.1 is reached"):
        solve(convex_toy(20), method, *toy_start(20), steps=200, record_every=200)


def test_settings_that_suit_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(convex_toy(20), toy_method(), *toy_start(20), steps=200, record_every=200)


def test_a_missing_projection_is_refused() -> None:
    problem = Problem(lambda x, y: x @ y, lambda x, y: y @ y, inequality=lambda x, y: x - y)
    with pytest.raises(ValueError, match=r"problem\.project_joint must be given"):
        solve(problem, LVHBA(), jnp.ones(2), jnp.ones(2), steps=1)
