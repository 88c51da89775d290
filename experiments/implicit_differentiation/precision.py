"""How far derivatives of an inexact ridge solution are from those of the solution, against theorem 1's bound.

The inner problem is ridge regression with a penalty for each weight, ½ mean (Φx - y)² + ½ Σ θ x². Its Jacobian is
known: -(ΦᵀΦ/n + diag θ)⁻¹ diag x. The solver is gradient descent from zeros, looked at after every step.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jattn import implicit
from jattn.data.tables import diabetes


class Problem(NamedTuple):
    """Standardised rows and targets, and a penalty for each weight."""

    rows: Float[Array, "count features"]
    targets: Float[Array, " count"]
    penalties: Float[Array, " features"]


class Curve(NamedTuple):
    """By step of the solver; errors of Jacobians are spectral norms.

    Attributes:
      distance: ‖x̂ - x*‖.
      implicit, unrolled, one_step: errors of the Jacobian by the implicit function theorem at x̂, of the derivative of
        all steps, and of that of one more step.
      bound: theorem 1's, with measured constants.
      loose: the same with the largest singular value of A in place of the smallest, which bounds nothing.
    """

    distance: Float[Array, " steps"]
    implicit: Float[Array, " steps"]
    unrolled: Float[Array, " steps"]
    one_step: Float[Array, " steps"]
    bound: Float[Array, " steps"]
    loose: Float[Array, " steps"]


def problem(seed: int) -> Problem:
    """Patients of the diabetes data drawn with replacement; penalties from 0.01 to 1, even in their logarithms."""
    generator = np.random.default_rng(seed)
    table = diabetes()
    drawn = generator.integers(len(table.target), size=len(table.target))
    rows, targets = (
        jnp.asarray((each - each.mean(axis=0)) / each.std(axis=0))
        for each in (table.features[drawn], table.target[drawn])
    )
    return Problem(rows, targets, jnp.asarray(np.exp(generator.uniform(np.log(0.01), 0, rows.shape[1]))))


def objective(weights: Float[Array, " features"], penalties: Array, rows: Array, targets: Array) -> Float[Array, ""]:
    """½ mean (Φx - y)² + ½ Σ θ x²."""
    return 0.5 * ((rows @ weights - targets) ** 2).mean() + 0.5 * (penalties * weights**2).sum()


def descent(data: Problem, steps: int) -> implicit.Iteration:
    """Gradient descent that never ascends: no curvature exceeds the number of features, and 1 for the penalty."""
    rate = 1 / (data.rows.shape[1] + 1)

    def step(weights: Array, penalties: Array, rows: Array, targets: Array) -> Array:
        return weights - rate * jax.grad(objective)(weights, penalties, rows, targets)

    return implicit.Iteration(step, steps)


def curve(data: Problem, steps: int) -> Curve:
    """What each of the solver's steps leaves.

    By two programs: in one, XLA's threads on two cores wait for one another and never end (jaxlib 0.10.2).
    """
    return _errors(data, *_trajectory(data, steps))


@partial(jax.jit, static_argnums=1)
def _trajectory(data: Problem, steps: int) -> tuple[Float[Array, "steps features"], Array]:
    """Where each step leads, and its Jacobian by the penalties."""
    rows, targets, penalties = data
    solver = descent(data, 1)

    def trajectory(penalties: Array) -> Float[Array, "steps features"]:
        def step(weights: Array, _: None) -> tuple[Array, Array]:
            after = solver.step(weights, penalties, rows, targets)
            return after, after

        return jax.lax.scan(step, jnp.zeros_like(penalties), None, length=steps)[1]

    return trajectory(penalties), jax.jacfwd(trajectory)(penalties)


@jax.jit
def _errors(
    data: Problem, points: Float[Array, "steps features"], unrolled: Float[Array, "steps features features"]
) -> Curve:
    rows, targets, penalties = data

    def as_solutions(adjoint: implicit.Implicit | implicit.OneStep) -> Float[Array, "steps features features"]:
        """The Jacobian as if each point were the solution."""
        solve = implicit.minimise(objective, lambda point, *_: point, adjoint=adjoint, check=None)
        of_point = jax.jacfwd(lambda penalties, point: solve(point, penalties, rows, targets).value)
        return jax.vmap(of_point, (None, 0))(penalties, points)

    hessian = rows.T @ rows / len(rows) + jnp.diag(penalties)
    solution = jnp.linalg.solve(hessian, rows.T @ targets / len(rows))
    jacobian = -jnp.linalg.solve(hessian, jnp.diag(solution))
    jacobians = (
        as_solutions(implicit.Implicit(implicit.Dense())),
        unrolled,
        as_solutions(implicit.OneStep(1 / (len(penalties) + 1))),
    )
    by_theorem, unrolled, one_step = (jnp.linalg.norm(each - jacobian, 2, (1, 2)) for each in jacobians)
    condition = implicit.stationary(lambda weights, penalties: objective(weights, penalties, rows, targets))
    bounds = jax.vmap(lambda point: implicit.error_bound(condition, point, penalties))(points)
    largest = jnp.linalg.norm(hessian, 2)
    loose = (bounds.of_image / largest + bounds.of_matrix * bounds.image / largest**2) * bounds.distance
    distance = jnp.linalg.norm(points - solution, axis=1)
    return Curve(distance, by_theorem, unrolled, one_step, bounds.bound, loose)
