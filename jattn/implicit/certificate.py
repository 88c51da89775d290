"""How good a solution is, and its derivatives."""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jattn.implicit.adjoint import Implicit, transposed
from jattn.implicit.check import WEAKLY_ACTIVE
from jattn.implicit.condition import Condition
from jattn.implicit.directions import random_direction
from jattn.implicit.error import first_order_error
from jattn.implicit.krylov import Report
from jattn.implicit.linear_solve import solve_linear

SLACK = 10.0
"""What is measured may be so many times what was asked for before it is spoken of."""


@no_type_check  # transformations put other things in the arrays' places
@struct.dataclass
class DerivativeCertificate:
    """How good derivatives by `Implicit` are, told by that of one number: the inner variables' sum with random signs.

    Attributes:
      residual, iterations: of its linear solve; the residual is relative.
      distance: of the inner variables from the solution, by a Newton step: by all directions, unlike that of a
        `Certificate`.
      error: what the derivative is off by over its size, to first order in that distance and that residual: the terms
        of `error_bound` in this direction, without its matrices.
    """

    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    distance: Float[Array, ""]
    error: Float[Array, ""]


@no_type_check  # transformations put other things in the arrays' places
@struct.dataclass
class Certificate:
    """How far a solution is from one.

    Attributes:
      distance: about how far the inner variables are from the solution: ‖F(inner, outer)‖ over ‖A v‖, A = ∂F/∂inner
        and v a random direction of length 1, so over the root mean square of A's singular values. Small where F is
        small but A is not; by directions in which A is much smaller than in most it is too small.
      residual: `distance` over ‖inner‖, or over 1 if that is more. The same for F and a multiple of F.
      active: which inequalities hold with equality, or which entries a projection or proximal operator holds where they
        are; None where nothing of the kind is known.
      margin: the smaller of the least multiplier of those and the least slack of the others, or about so, where the
        nearest kink of an operator is; at 0 is no derivative.
      derivative: how good derivatives are; None unless it was asked for.
    """

    distance: Float[Array, ""]
    residual: Float[Array, ""]
    active: Bool[Array, " inequalities"] | None
    margin: Float[Array, ""] | None
    derivative: DerivativeCertificate | None = None


def certificate(condition: Condition, inner: Any, *outer: Any, **named: Any) -> Certificate:
    """How well the condition holds. Without derivatives."""
    inner, outer, named = jax.lax.stop_gradient((inner, outer, named))

    def residual(inner: Any) -> Any:
        return condition.residual(inner, *outer, **named)

    missed, changed = (optax.tree.norm(each) for each in jax.jvp(residual, (inner,), (random_direction(inner),)))
    distance = jnp.where(missed == 0, 0, missed / changed)
    relative = distance / jnp.maximum(optax.tree.norm(inner), 1)
    if condition.activity is None:
        return Certificate(*jax.lax.stop_gradient((distance, relative)), None, None)
    return Certificate(*jax.lax.stop_gradient((distance, relative, *condition.activity(inner, *outer, **named))))


def derivative_certificate(condition: Condition, adjoint: Implicit, inner: Any, *outer: Any) -> DerivativeCertificate:
    """Three linear solves. Without derivatives."""
    inner, outer = jax.lax.stop_gradient((inner, outer))
    precondition = None if adjoint.preconditioner is None else adjoint.preconditioner(inner, *outer)

    def solve(matrix: Any, right: Any) -> tuple[Any, Report]:
        structure, solver = condition.structure, adjoint.linear_solver
        return solve_linear(matrix, right, structure=structure, solver=solver, precondition=precondition)

    cotangent = random_direction(inner)
    found, report = solve(transposed(condition, inner, *outer), cotangent)

    def number(inner: Any, *_: Any) -> Float[Array, ""]:
        return jnp.asarray(optax.tree.vdot(cotangent, inner))

    made = first_order_error(condition, number, inner, outer, found, lambda *system: solve(*system)[0])
    relative = jnp.where(made.error == 0, 0, made.error / made.size)
    return jax.lax.stop_gradient(DerivativeCertificate(report.residual, report.iterations, made.distance, relative))


def doubts(made: Certificate, tolerance: float) -> list[tuple[str, Float[Array, ""], Any]]:
    """What is wrong if a number is not within its limit."""
    found: list[tuple[str, Array, Any]] = [
        ("residual of an inner solution that is differentiated", made.residual, tolerance)
    ]
    if made.margin is not None:
        found.append((WEAKLY_ACTIVE, -made.margin, -jnp.maximum(1e-3 * tolerance, made.distance)))
    if made.derivative is not None:
        found.append(("relative error of a derivative, to first order", made.derivative.error, SLACK * tolerance))
    return found
