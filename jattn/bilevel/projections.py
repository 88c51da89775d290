"""Projections of outer and inner variables together, for `Problem.project_joint`.

`onto_affine` and `onto_halfspace` are closed forms, `onto_convex` is for any convex constraints, and `onto_margins` is
for those of a support vector machine. Sets of one kind of variables alone (box, simplex, balls) are in
`optax.projections`; where no constraint couples the variables, `Problem` needs no joint projection.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jattn.bilevel.problem import Variables

Joint = Callable[[Any, Any], tuple[Any, Any]]
Constraint = Callable[[Any, Any], Float[Array, " rows"]]


def onto_affine(equality: Constraint, outer: Variables, inner: Variables) -> Joint:
    """Onto {equality = 0}, of an affine function: x - Q R⁻ᵀ equality(x), with Jᵀ = QR factored once.

    Args:
      equality: affine with linearly independent rows; (outer, inner) -> rows.
      outer, inner: any variables of the right shapes.
    """
    flat, unravel = ravel_pytree((outer, inner))
    jacobian = jax.jacrev(lambda flat: equality(*unravel(flat)))(flat)
    across, triangle = jnp.linalg.qr(jacobian.T)

    def project(outer: Variables, inner: Variables) -> tuple[Variables, Variables]:
        flat, unravel = ravel_pytree((outer, inner))
        return unravel(
            flat - across @ jax.scipy.linalg.solve_triangular(triangle.T, equality(outer, inner), lower=True)
        )

    return project


def onto_halfspace(inequality: Constraint, outer: Variables, inner: Variables) -> Joint:
    """Onto {inequality <= 0}, of one affine row.

    Args:
      outer, inner: any variables of the right shapes.

    Raises:
      ValueError: there are more rows, or none.
    """
    rows, normal = inequality(outer, inner), jax.grad(lambda both: inequality(*both).sum())((outer, inner))
    if rows.shape != (1,):
        raise ValueError(f"inequality must have one row for a half-space; got shape {rows.shape}")
    normal, _ = ravel_pytree(normal)

    def project(outer: Variables, inner: Variables) -> tuple[Variables, Variables]:
        flat, unravel = ravel_pytree((outer, inner))
        return unravel(flat - normal * jnp.maximum(inequality(outer, inner), 0) / (normal @ normal))

    return project


def onto_convex(
    inequality: Constraint | None = None,
    equality: Constraint | None = None,
    *,
    tolerance: float = 1e-6,
    iterations: int = 50,
) -> Joint:
    """Onto {inequality <= 0, equality = 0}, by a semismooth Newton method on the dual.

    The dual function of multipliers λ is q(λ) = min over u of ½‖u - u0‖² + λᵀg(u), smooth and concave, with gradient
    g(u). Newton's step solves (G M⁻¹ Gᵀ) δ = g(u) for the rows that are active, where G are their gradients and
    M = I + Σ λ ∇²g; it is halved until q rises enough. M is never formed, only multiplied with; the matrix of rows is.

    Args:
      inequality: convex in outer and inner variables jointly.
      equality: affine.
      tolerance: the largest violation and complementarity error that counts as solved, in units of the rows.
      iterations: Newton steps at most.

    Raises:
      ValueError: there is no constraint.
    """
    if inequality is None and equality is None:
        raise ValueError("inequality or equality must be given; got neither")

    def project(outer: Variables, inner: Variables) -> tuple[Variables, Variables]:
        start, unravel = ravel_pytree((outer, inner))

        def rows(flat: Float[Array, " size"]) -> Float[Array, " rows"]:
            return jnp.concatenate([g(*unravel(flat)) for g in (inequality, equality) if g is not None])

        floor = jnp.concatenate(
            [
                jnp.full(jax.eval_shape(g, outer, inner).shape, lowest, start.dtype)
                for g, lowest in ((inequality, 0.0), (equality, -jnp.inf))
                if g is not None
            ]
        )
        flat, _ = _dual_newton(rows, start, floor, tolerance, iterations)
        return unravel(flat)

    return project


def onto_margins(
    matrix: Float[Array, "samples size"],
    weights: Float[Array, " size"],
    slack: Float[Array, " samples"],
    *,
    iterations: int = 20,
) -> tuple[Float[Array, " size"], Float[Array, " samples"]]:
    """Project weights and slack onto {1 - slack - matrix @ weights <= 0}, a support vector machine's constraints.

    The best slack of given weights is max(slack, 1 - matrix @ weights), which leaves a squared hinge in the weights
    alone, ½‖w - weights‖² + ½ Σ max(0, 1 - slack - matrix @ w)². Newton's method on it ends after a few steps, for it
    is piecewise quadratic.

    Args:
      matrix: each sample's features, and a 1 for the intercept, times its label of ±1.
      iterations: Newton steps at most.
    """

    def objective(moved: Float[Array, " size"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum((moved - weights) ** 2) + 0.5 * jnp.sum(jnp.maximum(1 - slack - matrix @ moved, 0) ** 2)

    def newton(carry: tuple) -> tuple:
        moved, _, count = carry
        active = (1 - slack - matrix @ moved > 0).astype(matrix.dtype)
        hessian = jnp.eye(weights.size, dtype=matrix.dtype) + (matrix * active[:, None]).T @ matrix
        gradient = jax.grad(objective)(moved)
        direction = -jnp.linalg.solve(hessian, gradient)
        size = _armijo(lambda size: objective(moved + size * direction), objective(moved), gradient @ direction)
        return moved + size * direction, jnp.abs(direction).max(), count + 1

    def unfinished(carry: tuple) -> Array:
        moved, last, count = carry
        return (last > jnp.finfo(moved.dtype).eps * (1 + jnp.abs(moved).max())) & (count < iterations)

    start = (weights, jnp.asarray(jnp.inf, weights.dtype), 0)
    moved, _, _ = jax.lax.while_loop(unfinished, newton, start)
    return moved, jnp.maximum(slack, 1 - matrix @ moved)


def _dual_newton(
    rows: Callable[[Array], Array], start: Array, floor: Array, tolerance: float, iterations: int
) -> tuple[Array, Array]:
    """The projection of start onto {rows <= 0}, or = 0 where floor is -inf, and the rows' multipliers."""
    epsilon = jnp.finfo(start.dtype).eps

    def lagrangian(flat: Array, multipliers: Array) -> Array:
        return 0.5 * jnp.sum((flat - start) ** 2) + multipliers @ rows(flat)

    def solve_curvature(flat: Array, multipliers: Array, vector: Array) -> Array:
        def times(vector: Array) -> Array:
            return jax.jvp(lambda flat: jax.grad(lagrangian)(flat, multipliers), (flat,), (vector,))[1]

        solution, _ = jax.scipy.sparse.linalg.cg(times, vector, tol=float(epsilon) ** 0.75)
        return solution

    def nearest(multipliers: Array, flat: Array) -> Array:
        """The minimiser of the Lagrangian, by Newton's method from flat: one step where rows are affine."""

        def newton(carry: tuple) -> tuple:
            flat, _, count = carry
            gradient = jax.grad(lagrangian)(flat, multipliers)
            direction = -solve_curvature(flat, multipliers, gradient)
            size = _armijo(
                lambda size: lagrangian(flat + size * direction, multipliers),
                lagrangian(flat, multipliers),
                gradient @ direction,
            )
            return flat + size * direction, jnp.abs(direction).max(), count + 1

        def unfinished(carry: tuple) -> Array:
            flat, last, count = carry
            return (last > 10 * epsilon * (1 + jnp.abs(flat).max())) & (count < iterations)

        return jax.lax.while_loop(unfinished, newton, (flat, jnp.asarray(jnp.inf, flat.dtype), 0))[0]

    def residual(flat: Array, multipliers: Array) -> Array:
        values = rows(flat)
        return jnp.abs(multipliers - jnp.maximum(multipliers + values, floor)).max()

    def ascend(carry: tuple) -> tuple:
        flat, multipliers, count = carry
        values = rows(flat)
        active = (multipliers + values > floor) | jnp.isneginf(floor)
        jacobian = jnp.where(active[:, None], jax.jacrev(rows)(flat), 0)
        solved = jax.vmap(lambda row: solve_curvature(flat, multipliers, row))(jacobian)
        matrix = jacobian @ solved.T
        # Rows that repeat others make the matrix singular; this moves the step, not the answer.
        ridge = 10 * epsilon * (jnp.trace(matrix) + 1)
        matrix += jnp.diag(jnp.where(active, ridge, 1))
        target = jnp.where(active, multipliers + jnp.linalg.solve(matrix, jnp.where(active, values, 0)), 0)

        def moved(size: Array | float) -> Array:
            return jnp.maximum(multipliers + size * (target - multipliers), floor)

        def descent(size: Array) -> Array:
            return -lagrangian(nearest(moved(size), flat), moved(size))

        size = _armijo(descent, -lagrangian(flat, multipliers), -values @ (moved(1.0) - multipliers))
        return nearest(moved(size), flat), moved(size), count + 1

    def unsolved(carry: tuple) -> Array:
        flat, multipliers, count = carry
        return (residual(flat, multipliers) > tolerance) & (count < iterations)

    flat, multipliers, _ = jax.lax.while_loop(unsolved, ascend, (start, jnp.zeros_like(floor), 0))
    return flat, multipliers


def _armijo(objective: Callable[[Array], Array], value: Array, slope: Array, halvings: int = 30) -> Array:
    """The largest of 1, ½, ¼ ... at which the objective falls by a small part of the slope, give or take rounding."""
    rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)

    def too_long(carry: tuple) -> Array:
        size, count = carry
        return ~(objective(size) <= value + 1e-4 * size * slope + rounding) & (count < halvings)

    return jax.lax.while_loop(too_long, lambda carry: (carry[0] / 2, carry[1] + 1), (jnp.ones_like(value), 0))[0]
