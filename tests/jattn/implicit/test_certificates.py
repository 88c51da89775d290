"""What certificates say of derivatives, against derivatives by dense matrices at the solution itself."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jattn import implicit
from jattn.implicit import ConjugateGradient, Dense, Gmres, Implicit, Minres, PrimalDual
from jattn.implicit.directions import random_direction

FLAT = np.array([1e-4, 1, 1, 1, 1, 1])
"""Curvatures: the first is hard to see in a residual."""
OUTER = np.linspace(-1, 1, 6)
EXACT = Implicit(Dense())


@pytest.fixture(autouse=True)
def _double() -> Any:
    with jax.enable_x64(True):
        yield


def bent(x: jax.Array, outer: jax.Array) -> jax.Array:
    """Least at x = outer, where it curves as `FLAT` says; less beside it."""
    return (FLAT * jnp.log(jnp.cosh(x - outer))).sum() + 0.05 * ((x[1:] - x[:-1] - outer[1:] + outer[:-1]) ** 4).sum()


def softened(x: jax.Array, outer: jax.Array) -> jax.Array:
    """Its mixed derivative depends on x, and on what outer variables cannot undo by moving along."""
    return bent(x, outer) + 0.1 * (jnp.exp(outer) * jnp.cos(x)).sum() + 0.1 * (x**2).sum()


def true_error(condition: implicit.Condition, inner: Any, best: Any, *outer: Any) -> tuple[float, float]:
    """Of the certificate's derivative at `inner` against that at the solution, relative; and the distance."""
    flat, restore = ravel_pytree(inner)
    outer_flat, restore_outer = ravel_pytree(outer)
    cotangent = ravel_pytree(random_direction(inner))[0]

    def derivative(flat: jax.Array) -> np.ndarray:
        by = jax.jacfwd(lambda x, o: ravel_pytree(condition.residual(restore(x), *restore_outer(o)))[0], (0, 1))
        matrix, image = by(flat, outer_flat)
        return np.asarray(-cotangent @ jnp.linalg.solve(matrix, image))

    here, there = derivative(flat), derivative(ravel_pytree(best)[0])
    return float(np.linalg.norm(here - there) / np.linalg.norm(here)), float(
        np.linalg.norm(flat - ravel_pytree(best)[0])
    )


def certified(condition: implicit.Condition, inner: Any, *outer: Any, adjoint: Any = EXACT) -> Any:
    solve = implicit.root(condition, lambda init, *_: init, adjoint=adjoint, certify=True)
    return jax.jit(lambda inner, *outer: solve(inner, *outer).certificate.derivative)(inner, *outer)


def newton(objective: Any, start: jax.Array, outer: jax.Array) -> jax.Array:
    step = jax.jit(lambda x: x - jnp.linalg.solve(jax.hessian(objective)(x, outer), jax.grad(objective)(x, outer)))
    for _ in range(50):
        start = step(start)
    return start


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("solver", [Dense(), ConjugateGradient(), Minres(), Gmres()])
def test_errors_and_distances_are_true_ones(size: float, solver: Any) -> None:
    """To first order: the nearer the solution the better."""
    best = newton(softened, OUTER, OUTER)
    assert np.linalg.norm(jax.grad(softened)(best, OUTER)) < 1e-14
    inner = best + size * jnp.array([0.3, -0.5, 0.7, 0.1, -0.2, 0.4])
    condition = implicit.stationary(softened)
    made = certified(condition, inner, OUTER, adjoint=Implicit(solver))
    error, distance = true_error(condition, inner, best, OUTER)
    np.testing.assert_allclose(made.error, error, rtol=3 * size + 1e-3)
    np.testing.assert_allclose(made.distance, distance, rtol=3 * size + 1e-3)
    assert made.residual < 1e-9


def test_other_structures_integers_and_many_outer_arguments() -> None:
    """A fixed point, whose matrix is not symmetric, of two trees and an index; a quadratic program's multipliers."""

    def map(inner: dict, matrix: jax.Array, which: Any, named: dict) -> dict:
        moved = jnp.tanh(matrix @ inner["a"] + named["shift"] * inner["b"])
        return {"a": moved, "b": 0.3 * jnp.sin(inner["a"].sum() + named["shift"]) + 0.1 * matrix[which, 0]}

    matrix = jnp.asarray(0.3 * np.random.default_rng(0).normal(size=(3, 3)))
    outer = matrix, jnp.int32(1), {"shift": jnp.asarray(0.4)}
    best = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    step = jax.jit(lambda inner: map(inner, *outer))
    for _ in range(200):
        best = step(best)
    inner = {"a": best["a"] + 1e-4, "b": best["b"] - 2e-4}
    made = certified(implicit.fixed(map), inner, *outer, adjoint=Implicit(Gmres(1e-12)))
    without = implicit.fixed(lambda inner, matrix, named: map(inner, matrix, 1, named))
    error, distance = true_error(without, inner, best, matrix, outer[2])
    np.testing.assert_allclose([made.error, made.distance], [error, distance], rtol=2e-3)
    assert made.iterations > 0

    program = implicit.kkt_of_quadratic_program()
    found = PrimalDual(jnp.array([0.0, 1.0]), None, jnp.array([2.0, 0.0]))
    problem = (2 * jnp.eye(2), jnp.array([2.0, -2.0])), None, (-jnp.eye(2), jnp.zeros(2))
    made = certified(program, found, *problem)
    np.testing.assert_allclose([made.error, made.distance], 0, atol=1e-12)
    off = PrimalDual(found.primal + jnp.array([0.0, 3e-3]), None, found.inequality)
    made = certified(program, off, *problem)
    error, distance = true_error(program, off, found, *problem)
    assert error > 1e-4
    np.testing.assert_allclose([made.error, made.distance], [error, distance], rtol=1e-2)


def test_a_linear_solve_that_stops_early_is_in_the_error() -> None:
    best = newton(softened, OUTER, OUTER)
    condition = implicit.stationary(softened)
    matrix = np.asarray(jax.hessian(softened)(best, OUTER))
    cotangent = np.asarray(random_direction(best))
    image = np.asarray(jax.jacfwd(jax.grad(softened), 1)(best, OUTER))
    right = np.linalg.solve(matrix, cotangent)
    made = certified(condition, best, OUTER, adjoint=Implicit(ConjugateGradient(1e-1)))
    assert 0 < made.iterations < 6
    steps, _ = jax.scipy.sparse.linalg.cg(matrix, cotangent, maxiter=int(made.iterations), tol=0)
    np.testing.assert_allclose(made.residual, np.linalg.norm(cotangent - matrix @ steps) / 1, rtol=1e-6)
    # What corrects it is itself exact to a tenth.
    error = np.linalg.norm((steps - right) @ image) / np.linalg.norm(steps @ image)
    np.testing.assert_allclose(made.error, error, rtol=0.3)


def test_what_residuals_do_not_see_is_spoken_of_if_certified() -> None:
    """Off by 0.3 along the direction that is 10⁴ times as flat as the others."""
    off = jnp.asarray(OUTER).at[0].add(0.3)

    def slope(check: Any, certify: bool) -> jax.Array:
        solve = implicit.minimise(tilted, lambda *_: off, adjoint=EXACT, check=check, certify=certify)
        return jax.jit(jax.grad(lambda outer: solve(OUTER, outer).value.sum()))(OUTER)

    def tilted(x: jax.Array, outer: jax.Array) -> jax.Array:
        return (FLAT * jnp.log(jnp.cosh(x - outer))).sum() + 1e-5 * (outer * x**2).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(slope("raise", False)).all()
    with pytest.raises(Exception, match="relative error of a derivative, to first order"):
        jax.block_until_ready(slope("raise", True))
    with pytest.warns(implicit.ImplicitWarning, match="relative error of a derivative"):
        jax.block_until_ready(slope("warn", True))
    assert np.isnan(slope("poison", True)).all()


def test_batches_gradients_and_second_derivatives_are_as_without() -> None:
    starts = jnp.stack([OUTER, OUTER + 1e-6])
    found = []
    for certify in (False, True):
        solve = implicit.minimise(
            softened,
            lambda init, outer: newton_steps(init, outer),
            adjoint=EXACT,
            check="raise",
            certify=certify,
        )
        loss = lambda outer, solve=solve: (solve(OUTER, outer).value ** 3).sum()  # noqa: E731
        found.append([jax.jit(jax.vmap(jax.grad(loss)))(starts), jax.jit(jax.jacfwd(jax.grad(loss)))(OUTER)])
    jax.tree.map(np.testing.assert_array_equal, *found)


def newton_steps(init: jax.Array, outer: jax.Array) -> jax.Array:
    def step(_: int, x: jax.Array) -> jax.Array:
        return x - jnp.linalg.solve(jax.hessian(softened)(x, outer), jax.grad(softened)(x, outer))

    return jax.lax.fori_loop(0, 10, step, init)


def test_a_program_that_does_not_use_them_does_not_make_them() -> None:
    def flops(certify: bool, whole: bool) -> float:
        solve = implicit.minimise(softened, newton_steps, adjoint=EXACT, check=None, certify=certify)

        def program(outer: jax.Array) -> Any:
            found = solve(OUTER, outer)
            return (found.value, found.certificate) if whole else found.value

        return jax.jit(program).lower(OUTER).compile().cost_analysis()["flops"]

    assert flops(True, False) == flops(False, False)
    assert flops(True, True) > flops(False, True)


def test_preconditioners_that_close_over_what_is_traced() -> None:
    best = newton(softened, OUTER, OUTER)

    def made(diagonal: jax.Array) -> Any:
        adjoint = Implicit(ConjugateGradient(1e-12), lambda inner, outer: lambda v: v / diagonal)
        return implicit.minimise(softened, lambda init, _: init, adjoint=adjoint, certify=True)(best, OUTER)

    matrix = jax.hessian(softened)(best, OUTER)
    good, none = (jax.jit(made)(each).certificate.derivative for each in (jnp.diag(matrix), jnp.ones(6)))
    assert good.error < 1e-10 > none.error
    assert good.iterations != none.iterations


def test_iterations_tell_their_steps() -> None:
    """In `auxiliary`, as jaxopt's solvers tell their state."""
    loose, tight = (
        implicit.minimise(softened, implicit.descent(softened, optax.sgd(0.5), 3000, tolerance))(OUTER, OUTER)
        for tolerance in (1e-3, 1e-9)
    )
    assert 0 < loose.auxiliary < tight.auxiliary < 3000
    for adjoint in (implicit.Unrolled(), implicit.Truncated(3), Implicit()):
        solve = implicit.minimise(softened, implicit.descent(softened, optax.sgd(0.5), 40), adjoint=adjoint)
        assert solve(OUTER, OUTER).auxiliary == 40


@pytest.mark.parametrize("adjoint", [implicit.Neumann(3), implicit.OneStep(), implicit.Unrolled()])
def test_other_adjoints_are_refused(adjoint: Any) -> None:
    with pytest.raises(ValueError, match="certify must be False unless the adjoint is Implicit; got adjoint="):
        implicit.fixed_point(
            lambda x, t: 0.5 * x + t, implicit.Iteration(lambda x, t: x, 3), adjoint=adjoint, certify=True
        )
