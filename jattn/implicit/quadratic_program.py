"""Convex quadratic programs to machine precision, with exact derivatives in every direction.

A primal-dual interior point finds which inequalities hold with equality. What is handed back is then the solution of
one symmetric linear system, that of the optimality conditions with those inequalities as equations. Its derivative is
that of a linear solve: exact, forward and reverse, of any order, as long as small changes leave the active set as it
is. (jaxopt's solvers differentiate an unsymmetric system with λ∘(Mx − h) by conjugate gradients on normal equations,
and are off by half on small least squares.)

Mehrotra, "On the implementation of a primal-dual interior point method", SIAM J. Optimization 1992. Blondel et al.,
"Efficient and modular implicit differentiation", NeurIPS 2022, arXiv 2105.15183.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jattn.implicit.check import WEAKLY_ACTIVE, Check, checked_policy, watched

# The interior point stops here at the latest; it takes 5 to 20 steps where there is a solution.
STEPS = 50
# Corrections of an active set that the interior point left undecided.
CORRECTIONS = 10
# Of the linear system, which is solved with a small multiple of the identity added.
REFINEMENTS = 5


class QuadraticSolution(NamedTuple):
    """A minimiser of ½xᵀQx + cᵀx where Ex = d and Mx <= h, and how far it can be trusted.

    Attributes:
      primal: x.
      equality: multipliers y of Ex = d.
      inequality: multipliers λ >= 0 of Mx <= h: Qx + c + Eᵀy + Mᵀλ = 0.
      active: inequalities that hold with equality; derivatives are those with this set held.
      margin: the smallest |λ - slack|. Near 0 an inequality is weakly active: the derivative jumps there.
      residual: the largest violation of an optimality condition, each relative to its terms.
      iterations: steps of the interior point.
      converged: the residual is that of rounding. False where the problem is infeasible or unbounded.
    """

    primal: Float[Array, " n"]
    equality: Float[Array, " equalities"]
    inequality: Float[Array, " inequalities"]
    active: Bool[Array, " inequalities"]
    margin: Float[Array, ""]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


class _Problem(NamedTuple):
    Q: Array
    c: Array
    E: Array
    d: Array
    M: Array
    h: Array


class _Point(NamedTuple):
    """An iterate of the interior point: x, the multipliers y and λ, and the slacks s."""

    x: Array
    y: Array
    multiplier: Array
    slack: Array


def solve_quadratic_program(
    Q: Float[Array, "n n"],
    c: Float[Array, " n"],
    E: Float[Array, "equalities n"] | None = None,
    d: Float[Array, " equalities"] | None = None,
    M: Float[Array, "inequalities n"] | None = None,
    h: Float[Array, " inequalities"] | None = None,
    *,
    check: Check = "warn",
) -> QuadraticSolution:
    """The x that minimises ½xᵀQx + cᵀx where Ex = d and Mx <= h, and its multipliers.

    Primal and multipliers are differentiable in all six arguments, forward and reverse, any number of times. It is
    dense: a step costs the cube of the number of variables and constraints. Q is positive semidefinite, and only its
    symmetric part is used. Redundant constraints are allowed; their multipliers are not unique.

    Nothing is raised for a problem without a solution, as that depends on values: look at `converged`.

    Args:
      check: what happens when a derivative is taken of what is not converged, or where an inequality is weakly active,
        as in `root`: "warn", "raise", "poison" or None.

    Raises:
      ValueError: E without d or M without h, or shapes that do not fit; no such check.
      TypeError: an argument is not of real floating point.
    """
    checked_policy(check)
    problem = _checked(Q, c, E, d, M, h)
    # Rows of length 1 and an objective of size 1, by constants: the solution does not depend on them.
    size = _scale(jnp.maximum(jnp.abs(problem.Q).max(initial=0), jnp.abs(problem.c).max(initial=0)))
    row_E, row_M = (_scale(jnp.linalg.norm(rows, axis=1)) for rows in (problem.E, problem.M))
    scaled = _Problem(
        problem.Q / size,
        problem.c / size,
        problem.E / row_E[:, None],
        problem.d / row_E,
        problem.M / row_M[:, None],
        problem.h / row_M,
    )
    fixed = jax.lax.stop_gradient(scaled)
    active, iterations = _interior_point(fixed) if len(fixed.h) else (jnp.zeros(0, bool), jnp.int32(0))
    active = _corrected(fixed, active)
    x, y, multiplier = _solve_on(scaled, active)
    residual = _residual(fixed, *jax.lax.stop_gradient((x, y, multiplier)))
    equality, inequality = y * size / row_E, multiplier * size / row_M
    margin = jnp.abs(inequality - (problem.h - problem.M @ x)).min(initial=jnp.inf)
    margin, precise = jax.lax.stop_gradient(margin), jnp.finfo(x.dtype).eps ** (2 / 3)
    found = watched(check, "residual of a quadratic program", (x, equality, inequality), residual, precise)
    found = watched(check, WEAKLY_ACTIVE, found, -margin, -precise)
    primal, equality, inequality = found
    return QuadraticSolution(
        primal, equality, inequality, active, margin, residual, iterations, converged=residual <= precise
    )


def _checked(Q: Array, c: Array, E: Array | None, d: Array | None, M: Array | None, h: Array | None) -> _Problem:
    """All six, of one dtype and with Q symmetric; without rows where None was given."""
    if c.ndim != 1 or Q.shape != (len(c), len(c)):
        raise ValueError(f"Q and c must be (n, n) and (n,); got {Q.shape} and {c.shape}")
    for matrix, right, names in ((E, d, "E and d"), (M, h, "M and h")):
        if (matrix is None) != (right is None):
            raise ValueError(f"{names} must be given together; got one of them")
        if matrix is None or right is None:
            continue
        if right.ndim != 1 or matrix.shape != (len(right), len(c)):
            raise ValueError(f"{names} must be (rows, {len(c)}) and (rows,); got {matrix.shape} and {right.shape}")
    given = {name: each for name, each in zip("QcEdMh", (Q, c, E, d, M, h), strict=True) if each is not None}
    for name, each in given.items():
        if not jnp.issubdtype(each.dtype, jnp.floating):
            raise TypeError(f"{name} must be of real floating point; got {each.dtype}")
    dtype = jnp.result_type(*given.values())
    E, M = (jnp.zeros((0, len(c))) if rows is None else rows for rows in (E, M))
    d, h = (jnp.zeros(0) if right is None else right for right in (d, h))
    return _Problem(*(jnp.asarray(each, dtype) for each in ((Q + Q.T) / 2, c, E, d, M, h)))


def _scale(size: Array) -> Array:
    """To divide by: constant, and 1 where there is nothing to scale."""
    return jax.lax.stop_gradient(jnp.where(size > 0, size, 1))


def _solve_on(problem: _Problem, active: Array) -> tuple[Array, Array, Array]:
    """x, y and λ where the active inequalities are equations and the others have multiplier 0.

    The system is symmetric: [[Q, Eᵀ, MᵀD], [E, 0, 0], [DM, 0, D - I]] with D = diag(active). It is solved with a small
    multiple of the identity added to its blocks, and refined: rows may be redundant and Q singular.
    """
    Q, c, E, d, M, h = problem
    n, equalities = len(c), len(d)
    chosen = active.astype(c.dtype)
    rows = jnp.concatenate([E, M * chosen[:, None]])
    corner = jnp.concatenate([jnp.zeros(equalities, c.dtype), chosen - 1])
    system = jnp.block([[Q, rows.T], [rows, jnp.diag(corner)]])
    small = jnp.finfo(c.dtype).eps ** 0.75
    sign = jnp.concatenate([jnp.ones(n, c.dtype), -jnp.ones(len(corner), c.dtype)])
    factors = jax.scipy.linalg.lu_factor(jax.lax.stop_gradient(system) + small * jnp.diag(sign))

    def solve(matvec, right: Array) -> Array:
        def refined(_: Array, found: Array) -> Array:
            return found + jax.scipy.linalg.lu_solve(factors, right - matvec(found))

        return jax.lax.fori_loop(0, 1 + REFINEMENTS, refined, jnp.zeros_like(right))

    right = jnp.concatenate([-c, d, h * chosen])
    found = jax.lax.custom_linear_solve(lambda z: system @ z, right, solve, symmetric=True)
    return found[:n], found[n : n + equalities], found[n + equalities :]


def _residual(problem: _Problem, x: Array, y: Array, multiplier: Array) -> Array:
    """The largest violation of stationarity, equations and complementarity, relative to what is added up in each."""
    Q, c, E, d, M, h = problem

    def largest(*terms: Array) -> Array:
        return jnp.stack([jnp.abs(term).max(initial=0) for term in terms]).max()

    terms = jnp.stack([Q @ x, c, E.T @ y, M.T @ multiplier])
    feasible = largest(E @ x - d) / (1 + largest(x, d))
    complementary = largest(jnp.minimum(multiplier, h - M @ x)) / (1 + largest(x, h))
    return jnp.stack([largest(terms.sum(axis=0)) / (1 + largest(terms)), feasible, complementary]).max()


def _corrected(problem: _Problem, active: Array) -> Array:
    """The active set after exchanging inequalities of the wrong sign, if that is better (a semismooth Newton)."""
    tolerance = 10 * jnp.finfo(problem.c.dtype).eps

    def unsettled(carry: tuple[Array, ...]) -> Array:
        _, exchange, _, _, count = carry
        return (count == 0) | exchange.any() & (count <= CORRECTIONS)

    def correct(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        active, exchange, best, least, count = carry
        active = active ^ exchange
        x, _, multiplier = _solve_on(problem, active)
        violation = -jnp.where(active, multiplier, problem.h - problem.M @ x)
        worst = violation.max(initial=0)
        allowed = tolerance * (1 + jnp.abs(x).max(initial=0) + jnp.abs(multiplier).max(initial=0))
        best, least = jnp.where(worst < least, active, best), jnp.minimum(worst, least)
        return active, violation > allowed, best, least, count + 1

    start = active, jnp.zeros_like(active), active, jnp.asarray(jnp.inf, problem.c.dtype), jnp.int32(0)
    return jax.lax.while_loop(unsettled, correct, start)[2]


def _interior_point(problem: _Problem) -> tuple[Array, Array]:
    """The inequalities whose multiplier ends above their slack, and the number of steps."""
    Q, c, E, d, M, h = problem
    n, tiny = len(c), jnp.finfo(c.dtype).eps

    def factorised(weight: Array) -> tuple[Array, Array]:
        """Of the system that is left when slacks and multipliers of inequalities are eliminated."""
        hessian = Q + (M.T * weight) @ M + tiny * jnp.eye(n, dtype=c.dtype)
        return jax.scipy.linalg.lu_factor(jnp.block([[hessian, E.T], [E, -tiny * jnp.eye(len(d), dtype=c.dtype)]]))

    def residuals(point: _Point) -> tuple[Array, Array, Array]:
        x, y, multiplier, slack = point
        return Q @ x + c + E.T @ y + M.T @ multiplier, E @ x - d, M @ x + slack - h

    def direction(factors: tuple[Array, Array], point: _Point, complementarity: Array) -> _Point:
        """The Newton step that makes the residuals and λ∘s + `complementarity` - λ∘s zero."""
        _, _, multiplier, slack = point
        dual, equal, unequal = residuals(point)
        inner = (multiplier * unequal - complementarity) / slack
        step = jax.scipy.linalg.lu_solve(factors, -jnp.concatenate([dual + M.T @ inner, equal]))
        x, y = step[:n], step[n:]
        change = M @ x
        return _Point(x, y, inner + multiplier / slack * change, -unequal - change)

    def longest(point: _Point, step: _Point) -> Array:
        """How far one can go along the step until a slack or a multiplier is 0."""
        value = jnp.concatenate([point.multiplier, point.slack])
        change = jnp.concatenate([step.multiplier, step.slack])
        return jnp.where(change < 0, -value / jnp.where(change < 0, change, -1), jnp.inf).min()

    def moved(point: _Point, step: _Point, length: Array) -> _Point:
        return _Point(*(value + length * change for value, change in zip(point, step, strict=True)))

    def gap(point: _Point) -> Array:
        return (point.multiplier * point.slack).mean()

    def unfinished(carry: tuple[_Point, Array]) -> Array:
        point, count = carry
        largest = jnp.stack([jnp.abs(each).max(initial=0) for each in residuals(point)]).max() + gap(point)
        size = 1 + jnp.stack([jnp.abs(each).max(initial=0) for each in (*point, d, h)]).max()
        return (largest > tiny**0.75 * size) & (count < STEPS)

    def advance(carry: tuple[_Point, Array]) -> tuple[_Point, Array]:
        point, count = carry
        factors = factorised(point.multiplier / point.slack)
        product = point.multiplier * point.slack
        predictor = direction(factors, point, product)
        predicted = gap(moved(point, predictor, jnp.minimum(1, longest(point, predictor))))
        centring = (predicted / gap(point)) ** 3 * gap(point)
        step = direction(factors, point, product + predictor.multiplier * predictor.slack - centring)
        return moved(point, step, jnp.minimum(1, 0.99 * longest(point, step))), count + 1

    # The start of CVXOPT's coneqp: least squares of the slacks, then both shifted to be positive.
    start = jax.scipy.linalg.lu_solve(factorised(jnp.ones_like(h)), jnp.concatenate([M.T @ h - c, d]))
    x, y = start[:n], start[n:]
    multiplier, slack = (jnp.where(each.min() > 0, each, each - each.min() + 1) for each in (M @ x - h, h - M @ x))
    point, count = jax.lax.while_loop(unfinished, advance, (_Point(x, y, multiplier, slack), jnp.int32(0)))
    return point.multiplier > point.slack, count
