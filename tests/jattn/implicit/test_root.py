"""Derivatives of solutions against dense A⁻¹B in float64, in every mode, of every solver; what is said of bad ones."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jattn.implicit.check
from jattn import implicit
from jattn.implicit import Automatic, BiCGStab, ConjugateGradient, Dense, Gmres, Implicit, Minres

NUMBERS = np.random.default_rng(0)
FEATURES, TARGETS = NUMBERS.normal(size=(30, 6)), NUMBERS.normal(size=30)
PENALTIES = np.linspace(0.5, 2.0, 6)


@pytest.fixture(autouse=True)
def _double() -> Any:
    with jax.enable_x64(True):
        yield


def objective(inner: jax.Array, penalties: jax.Array, targets: jax.Array) -> jax.Array:
    """Robust regression with a penalty for each weight: strictly convex, no closed form."""
    return jnp.log(jnp.cosh(FEATURES @ inner - targets)).sum() + 0.5 * (penalties * inner**2).sum()


@jax.jit
def newton(init: jax.Array, *outer: jax.Array) -> jax.Array:
    """To the last digit."""

    def step(_: int, inner: jax.Array) -> jax.Array:
        return inner - jnp.linalg.solve(jax.hessian(objective)(inner, *outer), jax.grad(objective)(inner, *outer))

    return jax.lax.fori_loop(0, 30, step, init)


@jax.jit
def matrices(penalties: jax.Array, targets: jax.Array) -> Any:
    """Second derivatives at the solution."""
    inner = newton(jnp.zeros(6), penalties, targets)
    return jax.jacfwd(jax.grad(objective), (0, 1, 2))(inner, penalties, targets)


def dense(penalties: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives of the solution by both, by matrices."""
    hessian, *mixed = matrices(jnp.asarray(penalties), jnp.asarray(targets))
    first, second = (-np.linalg.solve(hessian, each) for each in mixed)
    return first, second


SOLVERS: dict[str, tuple[Any, Any]] = {
    "conjugate gradients": ("positive definite", ConjugateGradient(1e-12)),
    "MINRES": ("positive definite", Minres(1e-12)),
    "GMRES": ("general", Gmres(1e-12)),
    "BiCGSTAB": ("general", BiCGStab(1e-12)),
    "dense": ("positive definite", Dense()),
    "automatic": ("general", Automatic()),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_first_derivatives_are_those_of_matrices(name: str, mode: Callable[..., Any]) -> None:
    structure, linear_solver = SOLVERS[name]
    sign = 1 if structure == "positive definite" else -1
    condition = implicit.Condition(jax.grad(objective), structure, sign)
    solve = implicit.root(condition, newton, adjoint=Implicit(linear_solver), check="raise", tolerance=1e-9)
    found = jax.jit(mode(lambda *outer: solve(jnp.zeros(6), *outer).value, (0, 1)))(PENALTIES, TARGETS)
    for have, want in zip(found, dense(PENALTIES, TARGETS), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-8)


def test_products_and_vmap() -> None:
    solve = implicit.minimise(objective, newton, adjoint=Implicit(ConjugateGradient(1e-12)), check="raise")
    first, second = dense(PENALTIES, TARGETS)
    along, back = NUMBERS.normal(size=6), NUMBERS.normal(size=6)

    def value(penalties: jax.Array, targets: jax.Array) -> jax.Array:
        return solve(jnp.zeros(6), penalties, targets).value

    _, moved = jax.jvp(lambda penalties: value(penalties, TARGETS), (PENALTIES,), (along,))
    np.testing.assert_allclose(moved, first @ along, atol=1e-9)
    _, pull = jax.vjp(value, PENALTIES, TARGETS)
    for have, want in zip(pull(jnp.asarray(back)), (back @ first, back @ second), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-9)
    several = np.stack([PENALTIES, 2 * PENALTIES, 0.1 + PENALTIES])
    found = jax.jit(jax.vmap(jax.jacrev(value), (0, None)))(several, TARGETS)
    for have, penalties in zip(found, several, strict=True):
        np.testing.assert_allclose(have, dense(penalties, TARGETS)[0], atol=1e-8)


@pytest.mark.parametrize("outer_mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner_mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("linear_solver", [Dense(), ConjugateGradient(1e-12, 50)])
def test_second_derivatives_are_differences_of_first(
    outer_mode: Callable[..., Any], inner_mode: Callable[..., Any], linear_solver: Any
) -> None:
    solve = implicit.minimise(objective, newton, adjoint=Implicit(linear_solver), check="raise")

    def value(penalties: jax.Array) -> jax.Array:
        return solve(jnp.zeros(6), penalties, jnp.asarray(TARGETS)).value

    step = 1e-5
    found = jax.jit(outer_mode(inner_mode(value)))(jnp.asarray(PENALTIES))
    for index, direction in enumerate(np.eye(6)):
        above, below = (dense(PENALTIES + sign * step * direction, TARGETS)[0] for sign in (1, -1))
        np.testing.assert_allclose(found[:, :, index], (above - below) / (2 * step), atol=1e-8)


def test_third_derivative_of_a_closed_form() -> None:
    """x³ = θ: x = θ^(1/3)."""
    solve = implicit.root(
        lambda x, theta: x**3 - theta, lambda init, theta: jnp.cbrt(theta), adjoint=Implicit(Dense()), check="raise"
    )
    third = jax.grad(jax.grad(jax.grad(lambda theta: solve(jnp.ones(()), theta).value)))(8.0)
    np.testing.assert_allclose(third, 10 / 27 * 8 ** (-8 / 3), rtol=1e-12)


def test_trees_auxiliary_output_and_named_arguments() -> None:
    """Inner and outer variables are trees, integers among the outer ones; the answer is (b/(a+k), b·k/2)."""

    def condition(inner: dict, outer: dict, *, shift: jax.Array) -> dict:
        return {
            "x": outer["a"] * inner["x"] + shift * inner["x"] - outer["b"],
            "y": (2 * inner["y"][0] - outer["b"] * shift,),
        }

    def solver(init: dict, outer: dict, *, shift: jax.Array) -> tuple[dict, dict]:
        x, y = outer["b"] / (outer["a"] + shift), (outer["b"] * shift / 2,)
        return {"x": x, "y": y}, {"steps": 3, "count": outer["count"]}

    init = {"x": jnp.zeros(2), "y": (jnp.zeros(2),)}
    solve = implicit.root(condition, solver, has_auxiliary=True, check="raise")

    def total(a: jax.Array, b: jax.Array, shift: jax.Array) -> Any:
        found = solve(init, {"a": a, "b": b, "count": jnp.arange(2)}, shift=shift)
        return (found.value["x"] * jnp.array([1.0, 2])).sum() + found.value["y"][0].sum(), found.auxiliary

    a, b, k = jnp.array([1.0, 3]), jnp.array([2.0, 5]), 0.5
    (by_a, by_b, by_k), auxiliary = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(a, b, k)
    weights = np.array([1.0, 2])
    assert auxiliary["steps"] == 3
    np.testing.assert_array_equal(auxiliary["count"], [0, 1])
    np.testing.assert_allclose(by_a, -weights * b / (a + k) ** 2, rtol=1e-10)
    np.testing.assert_allclose(by_b, weights / (a + k) + k / 2, rtol=1e-10)
    np.testing.assert_allclose(by_k, (-weights * b / (a + k) ** 2 + b / 2).sum(), rtol=1e-10)


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd, lambda function: jax.jit(jax.grad(function))])
def test_what_condition_and_solver_close_over_is_outer_too(transform: Callable[..., Any]) -> None:
    def value(theta: jax.Array) -> jax.Array:
        def step(x: jax.Array) -> jax.Array:
            return x - 0.1 * (2 * x - theta)

        def solver(init: jax.Array) -> jax.Array:
            return jax.lax.while_loop(lambda x: jnp.abs(2 * x - theta) > 1e-12, step, init)

        return implicit.root(lambda x: 2 * x - theta, solver, check="raise")(jnp.zeros(())).value ** 2

    np.testing.assert_allclose(transform(value)(3.0), 1.5, rtol=1e-9)


def test_solvers_of_many_kinds_give_the_same_derivative() -> None:
    import jaxopt

    value, slope = jax.jit(objective), jax.jit(jax.grad(objective))

    def by_scipy(init: np.ndarray, penalties: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return scipy.optimize.minimize(
            lambda inner: float(value(inner, penalties, targets)),
            init,
            jac=lambda inner: np.asarray(slope(inner, penalties, targets)),
            tol=1e-12,
        ).x

    solvers = {
        "jaxopt": jaxopt.LBFGS(objective, tol=1e-10, maxiter=500),
        "optax": implicit.descent(objective, optax.sgd(0.05, momentum=0.5), 2000, tolerance=1e-13),
        "scipy": implicit.on_host(by_scipy),
    }
    want, _ = dense(PENALTIES, TARGETS)
    for name, solver in solvers.items():
        solve = implicit.minimise(objective, solver, adjoint=Implicit(Dense()), check="raise", tolerance=1e-5)

        def found(penalties: jax.Array, solve: Any = solve) -> jax.Array:
            return solve(jnp.zeros(6), penalties, jnp.asarray(TARGETS)).value

        for mode in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(jax.jit(mode(found))(PENALTIES), want, atol=1e-5, err_msg=name)


def test_preconditioners_change_iterations_and_nothing_else() -> None:
    scales = np.geomspace(1, 1e6, 100)
    matrix = lambda vector: scales * vector + 0.1 * vector.sum()  # noqa: E731
    right = NUMBERS.normal(size=100)
    options: dict[str, Any] = {"structure": "positive definite", "solver": ConjugateGradient(1e-10)}
    plain, slow = implicit.solve_linear(matrix, right, **options)
    quick, report = implicit.solve_linear(matrix, right, **options, precondition=lambda vector: vector / scales)
    want = np.linalg.solve(np.diag(scales) + 0.1, right)
    np.testing.assert_allclose(plain, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(quick, want, rtol=1e-6, atol=1e-12)
    assert report.iterations < 10 < slow.iterations
    near, fewest = implicit.solve_linear(matrix, right, **options, start=want * (1 + 1e-12))
    assert fewest.iterations == 0
    np.testing.assert_allclose(near, want, rtol=1e-9)

    def value(penalties: jax.Array) -> jax.Array:
        adjoint = Implicit(
            ConjugateGradient(1e-12), lambda inner, penalties, targets: lambda vector: vector / penalties
        )
        solve = implicit.minimise(objective, newton, adjoint=adjoint, check="raise")
        return solve(jnp.zeros(6), penalties, jnp.asarray(TARGETS)).value

    np.testing.assert_allclose(jax.jacrev(value)(PENALTIES), dense(PENALTIES, TARGETS)[0], atol=1e-9)


def test_a_preconditioner_may_close_over_what_is_traced() -> None:
    """And differentiated: by that the solution has the derivative 0, under jit and vmap and to second order."""

    def value(penalties: jax.Array, scale: jax.Array) -> jax.Array:
        def precondition(inner: jax.Array, *_: jax.Array) -> Callable[[jax.Array], jax.Array]:
            return lambda vector: vector / (scale * penalties)

        adjoint = Implicit(ConjugateGradient(1e-12), precondition)
        solve = implicit.minimise(objective, newton, adjoint=adjoint, check="raise")
        return solve(jnp.zeros(6), penalties, jnp.asarray(TARGETS)).value

    want = dense(PENALTIES, TARGETS)[0]
    by_penalties, by_scale = jax.jit(jax.jacrev(value, (0, 1)))(PENALTIES, 2.0)
    np.testing.assert_allclose(by_penalties, want, atol=1e-9)
    np.testing.assert_array_equal(by_scale, 0)
    mapped = jax.vmap(jax.jacrev(value), (None, 0))(PENALTIES, jnp.array([0.5, 3.0]))
    np.testing.assert_allclose(mapped, [want, want], atol=1e-9)
    second = jax.jacfwd(jax.jacrev(lambda penalties: value(penalties, 2.0)))(PENALTIES)
    shift = 1e-4 * np.eye(6)
    ends = ([dense(PENALTIES + sign * each, TARGETS)[0] for each in shift] for sign in (1, -1))
    differences = np.subtract(*map(np.array, ends)) / 2e-4
    np.testing.assert_allclose(second, np.moveaxis(differences, 0, -1), atol=1e-6)


def test_krylov_methods_on_matrices_of_all_signs() -> None:
    """Against a dense solve; the report's residual is that of the answer."""
    rotation = np.linalg.qr(NUMBERS.normal(size=(50, 50)))[0]
    indefinite = rotation @ np.diag(np.linspace(-3, 5, 50) + 0.013) @ rotation.T
    right = NUMBERS.normal(size=50)
    x, report = implicit.solve_linear(lambda v: indefinite @ v, right, structure="symmetric", solver=Minres(1e-10))
    np.testing.assert_allclose(x, np.linalg.solve(indefinite, right), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        report.residual, np.linalg.norm(right - indefinite @ x) / np.linalg.norm(right), rtol=1e-3, atol=1e-14
    )
    _, cut = implicit.solve_linear(lambda v: indefinite @ v, right, structure="symmetric", solver=Minres(1e-10, most=5))
    assert cut.iterations == 5
    assert cut.residual > 1e-3
    nothing, report = implicit.solve_linear(lambda v: v, np.zeros(3), structure="positive definite", solver=Minres())
    assert (nothing == 0).all()
    assert report == (0, 0)


def gradient(check: Any, steps: int, most: int = 100) -> jax.Array:
    """Of the sum of the solution's squares by the penalties, after so many steps downhill."""
    solver = implicit.descent(objective, optax.sgd(0.05), steps)
    adjoint = Implicit(ConjugateGradient(1e-10, most))
    solve = implicit.minimise(objective, solver, adjoint=adjoint, check=check)
    return jax.jit(jax.grad(lambda outer: (solve(jnp.zeros(6), outer, jnp.asarray(TARGETS)).value ** 2).sum()))(
        PENALTIES
    )


def test_unconverged_solutions_and_linear_solves_do_not_pass_unnoticed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(gradient("warn", 2000)).all()
        assert np.isfinite(gradient("raise", 2000)).all()
        assert np.isfinite(gradient("poison", 2000)).all()
        assert np.isfinite(gradient(None, 3)).all()
    for options, what in (((3,), "residual of an inner solution"), ((2000, 2), "residual of a linear solve")):
        with pytest.warns(implicit.ImplicitWarning, match=what):
            jax.block_until_ready(gradient("warn", *options))
        with pytest.raises(Exception, match=what):
            jax.block_until_ready(gradient("raise", *options))
        assert np.isnan(gradient("poison", *options)).all()


def test_values_are_not_checked_and_forward_mode_is() -> None:
    solve = implicit.minimise(objective, implicit.descent(objective, optax.sgd(0.05), 3), check="poison")
    outer = jnp.asarray(PENALTIES), jnp.asarray(TARGETS)
    found = solve(jnp.zeros(6), *outer)
    assert np.isfinite(found.value).all()
    # Over the root mean square of the singular values, but for the direction that was drawn.
    hessian = jax.hessian(objective)(found.value, *outer)
    typical = np.linalg.norm(hessian) / 6**0.5
    missed = np.linalg.norm(jax.grad(objective)(found.value, *outer))
    np.testing.assert_allclose(found.certificate.distance, missed / typical, rtol=0.5)
    relative = found.certificate.distance / max(1, np.linalg.norm(found.value))
    np.testing.assert_allclose(found.certificate.residual, relative, rtol=1e-10)
    assert np.isnan(jax.jacfwd(lambda outer: solve(jnp.zeros(6), outer, TARGETS).value)(outer[0])).all()


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_multiple_of_a_condition_is_judged_alike(size: float) -> None:
    """min s (cosh x - θ x), whose solution is asinh θ with slope (1 + θ²)^-½; also far off, where s F is small."""

    def scaled(x: jax.Array, theta: jax.Array) -> jax.Array:
        return size * (jnp.cosh(x) - theta * x)

    def slope(found: Any) -> jax.Array:
        solve = implicit.minimise(scaled, lambda init, theta: found(theta), adjoint=Implicit(Dense()), check="raise")
        return jax.grad(lambda theta: solve(jnp.zeros(()), theta).value)(5.0)

    np.testing.assert_allclose(slope(jnp.arcsinh), 26**-0.5, rtol=1e-9)
    np.testing.assert_allclose(slope(lambda theta: jnp.arcsinh(theta) + 1e-4), 26**-0.5, rtol=1e-3)
    with pytest.raises(Exception, match="residual of an inner solution"):
        slope(jnp.zeros_like)


@pytest.mark.parametrize("check", ["poison", "warn"])
def test_checks_under_vmap_speak_of_those_that_are_bad(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the whole batch; where nothing is bad, the host is not called."""
    calls = []
    said = jattn.implicit.check._say
    monkeypatch.setattr("jattn.implicit.check._say", lambda *arguments: calls.append(arguments) or said(*arguments))
    solve = implicit.minimise(objective, implicit.descent(objective, optax.sgd(0.05), 40), check=check, tolerance=1e-2)

    @jax.jit
    @jax.vmap
    def slopes(init: jax.Array) -> jax.Array:
        return jax.grad(lambda outer: solve(init, outer, jnp.asarray(TARGETS)).value.sum())(PENALTIES)

    near = newton(jnp.zeros(6), jnp.asarray(PENALTIES), jnp.asarray(TARGETS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        want = jax.block_until_ready(slopes(jnp.stack([near, near])))[0]
    assert np.isfinite(want).all()
    assert not calls
    far = jnp.stack([near, near + 1e4])
    if check == "poison":
        found = slopes(far)
        assert np.isnan(found[1]).all()
    else:
        with pytest.warns(implicit.ImplicitWarning, match="in 1 of 2"):
            found = jax.block_until_ready(slopes(far))
        assert [np.shape(values) for _, _, values, _ in calls] == [(2,), (2,)]  # of the inner and of the linear solve
    np.testing.assert_allclose(found[0], want)


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda: implicit.minimise(objective, newton, check="loud"), ValueError, "check must be"),
        (
            lambda: implicit.minimise(objective, newton, adjoint=implicit.Truncated(3)),
            ValueError,
            "solver must be an Iteration",
        ),
        (lambda: implicit.Neumann(0), ValueError, "terms must be at least 1; got 0"),
        (
            lambda: implicit.minimise(objective, newton)(jnp.zeros(6, complex), PENALTIES, TARGETS),
            TypeError,
            "init must be real floating point numbers; got an array of complex128",
        ),
        (
            lambda: implicit.solve_linear(lambda v: v, np.ones(2), structure="general", solver=ConjugateGradient()),
            ValueError,
            "positive definite",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], error: type, complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        make()
