"""How far the derivative of an inexact solution is from that of the solution: a bound, and an estimate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jattn.implicit.adjoint import derivative, transposed
from jattn.implicit.condition import Condition, as_condition


class ErrorBound(NamedTuple):
    """The terms of a bound on ‖Ĵ - J‖, spectral norms throughout.

    Attributes:
      distance: of the inner variables from the solution, to first order: ‖A⁻¹ F‖.
      smallest: α, the smallest singular value of A = -∂F/∂inner.
      image: R, the largest one of B = ∂F/∂outer.
      of_matrix, of_image: γ and β, how fast A and B change towards the solution: Lipschitz constants on that line.
      bound: (β/α + γ R/α²) · distance.
    """

    distance: Float[Array, ""]
    smallest: Float[Array, ""]
    image: Float[Array, ""]
    of_matrix: Float[Array, ""]
    of_image: Float[Array, ""]
    bound: Float[Array, ""]


def error_bound(condition: Condition | Callable[..., Any], inner: Any, *outer: Any) -> ErrorBound:
    """A bound on the error of the Jacobian by the implicit function theorem where F(inner, *outer) is not quite 0.

    Blondel et al. 2022, theorem 1, with its constants measured at `inner` and at one Newton step from there, so that it
    holds to first order in the distance. By dense matrices: for up to some thousands of inner and outer numbers.
    """
    residual = as_condition(condition).residual
    flat, restore = ravel_pytree(inner)
    outer_flat, restore_outer = ravel_pytree(outer)

    def of_flat(flat: Array, outer_flat: Array) -> Array:
        return ravel_pytree(residual(restore(flat), *restore_outer(outer_flat)))[0]

    def matrices(flat: Array) -> tuple[Array, Array]:
        by_inner, by_outer = jax.jacfwd(of_flat, (0, 1))(flat, outer_flat)
        return -by_inner, by_outer

    matrix, image = matrices(flat)
    step = jnp.linalg.solve(matrix, of_flat(flat, outer_flat))
    distance = jnp.linalg.norm(step)
    later = matrices(flat + step)
    apart = jnp.where(distance > 0, distance, 1)
    of_matrix, of_image = (jnp.linalg.norm(a - b, 2) / apart for a, b in zip(later, (matrix, image), strict=True))
    smallest, largest = jnp.linalg.norm(matrix, -2), jnp.linalg.norm(image, 2)
    bound = (of_image / smallest + of_matrix * largest / smallest**2) * distance
    return ErrorBound(distance, smallest, largest, of_matrix, of_image, bound)


class FirstOrderError(NamedTuple):
    """Of d objective(inner(outer), outer)/d outer.

    Attributes:
      error: the size of what it is off by.
      size: its own.
      distance: of the inner variables from the solution, by a Newton step.
    """

    error: Float[Array, ""]
    size: Float[Array, ""]
    distance: Float[Array, ""]


def first_order_error(
    condition: Condition,
    objective: Callable[..., Float[Array, ""]],
    inner: Any,
    outer: tuple,
    adjoint: Any,
    solve: Callable[[Callable[[Any], Any], Any], Any],
) -> FirstOrderError:
    """What a hypergradient by `adjoint` is off by, to first order in what inner variables and adjoint are off by.

    It is the change of the hypergradient along a Newton step of both: the terms of `error_bound` in the one direction
    that matters, without its matrices, and what the residual of the adjoint adds. Two linear solves.

    Args:
      objective: of inner and outer variables.
      adjoint: u with Aᵀu = ∂ objective/∂ inner, nearly, for A = sign · ∂F/∂ inner.
      solve: (v -> A v or Aᵀ v, b) -> the v that gives b.
    """
    sign = condition.sign

    def unsolved(inner: Any) -> Any:
        right = jax.grad(objective)(inner, *outer)
        return jax.tree.map(jnp.subtract, right, transposed(condition, inner, *outer)(adjoint))

    def hypergradient(inner: Any, adjoint: Any) -> list[Array]:
        def both(outer: tuple) -> tuple[Array, Any]:
            return objective(inner, *outer), condition.residual(inner, *outer)

        (value, _), pull = jax.vjp(both, outer)
        (found,) = pull((jnp.ones_like(value), jax.tree.map(lambda each: -sign * each, adjoint)))
        return [leaf for leaf in jax.tree.leaves(found) if leaf.dtype != jax.dtypes.float0]

    right = jax.tree.map(lambda each: -sign * each, condition.residual(inner, *outer))
    newton = solve(derivative(condition, inner, *outer), right)
    missing = jax.tree.map(jnp.add, *jax.jvp(unsolved, (inner,), (newton,)))
    better = solve(transposed(condition, inner, *outer), missing)
    found, off = jax.jvp(hypergradient, (inner, adjoint), (newton, better))
    return FirstOrderError(*map(optax.tree.norm, (off, found, newton)))
