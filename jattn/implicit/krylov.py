"""Krylov methods for symmetric matrices, on flat vectors.

For other matrices lineax has GMRES and BiCGSTAB; it has no MINRES, and its conjugate gradients stop by elements, not by
the norm that the error bound of an implicit derivative is stated in.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Vector = Float[Array, " size"]
Product = Callable[[Vector], Vector]


class Report(NamedTuple):
    """How a linear solve went.

    Attributes:
      iterations: products with the matrix, but for those that check; 0 for a direct method.
      residual: ‖b − A x‖ / ‖b‖; 0 where b is.
    """

    iterations: Int[Array, ""]
    residual: Float[Array, ""]


def conjugate_gradient(
    product: Product,
    right: Vector,
    start: Vector | None,
    precondition: Product | None,
    tolerance: Float[Array, ""] | float,
    most: int,
) -> tuple[Vector, Report]:
    """Solve A x = b with A symmetric positive definite, to ‖b − A x‖ ≤ tolerance ‖b‖ (Hestenes and Stiefel 1952).

    Args:
      product: v -> A v.
      right: b.
      start: the first x; zeros if None.
      precondition: v -> M⁻¹ v with M symmetric positive definite and near A; the identity if None.
      most: iterations at most; also stops where A is found not to be positive definite.
    """
    limit = tolerance * jnp.linalg.norm(right)
    x = jnp.zeros_like(right) if start is None else start
    residual = right if start is None else right - product(start)

    def measured(residual: Vector) -> tuple[Vector, Array, Array]:
        """M⁻¹ r, <r, M⁻¹ r> and <r, r>, which are one number without M."""
        squared = residual @ residual
        if precondition is None:
            return residual, squared, squared
        ahead = precondition(residual)
        return ahead, residual @ ahead, squared

    def unfinished(carry: tuple) -> Array:
        *_, size, squared, count = carry
        return (jnp.sqrt(squared) > limit) & (count < most) & (size > 0)

    def step(carry: tuple) -> tuple:
        x, residual, direction, size, _, count = carry
        image = product(direction)
        curvature = direction @ image
        sound = curvature > 0
        rate = jnp.where(sound, size / jnp.where(sound, curvature, 1), 0)
        x, residual = x + rate * direction, residual - rate * image
        ahead, after, squared = measured(residual)
        direction = ahead + after / size * direction
        return x, residual, direction, jnp.where(sound, after, -1), squared, count + 1

    ahead, size, squared = measured(residual)
    x, residual, *_, count = jax.lax.while_loop(unfinished, step, (x, residual, ahead, size, squared, jnp.int32(0)))
    return x, _report(residual, right, count)


def minimal_residual(
    product: Product, right: Vector, start: Vector | None, tolerance: Float[Array, ""] | float, most: int
) -> tuple[Vector, Report]:
    """As `conjugate_gradient`, for symmetric A, definite or not (MINRES, Paige and Saunders 1975).

    Lanczos vectors make A tridiagonal; Givens rotations bring that to triangular form as it grows.
    """
    first = jnp.zeros_like(right) if start is None else start
    residual = right if start is None else right - product(start)
    limit, size = tolerance * jnp.linalg.norm(right), jnp.linalg.norm(residual)
    zero, nothing = jnp.zeros_like(right), jnp.zeros((), right.dtype)

    def unfinished(carry: tuple) -> Array:
        *_, left, beta, count = carry
        return (jnp.abs(left) > limit) & (beta > 0) & (count < most)

    def step(carry: tuple) -> tuple:
        x, (before, now), (older, old), (c_older, s_older), (c_old, s_old), left, beta, count = carry
        image = product(now) - beta * before
        alpha = now @ image
        image = image - alpha * now
        beta_next = jnp.linalg.norm(image)
        third = s_older * beta
        second = c_old * c_older * beta + s_old * alpha
        first = c_old * alpha - s_old * c_older * beta
        length = jnp.hypot(first, beta_next)
        sound = length > 0
        length = jnp.where(sound, length, 1)
        cosine, sine = first / length, beta_next / length
        direction = (now - third * older - second * old) / length
        x = jnp.where(sound, x + cosine * left * direction, x)
        after = image / jnp.where(beta_next > 0, beta_next, 1)
        left = jnp.where(sound, -sine * left, left)
        beta_next = jnp.where(sound, beta_next, 0)
        return x, (now, after), (old, direction), (c_old, s_old), (cosine, sine), left, beta_next, count + 1

    begin = residual / jnp.where(size > 0, size, 1)
    one = jnp.ones((), right.dtype)
    carry = (first, (zero, begin), (zero, zero), (one, nothing), (one, nothing), size, size, jnp.int32(0))
    # The first Lanczos step has no vector before it, so what stands for beta there multiplies zero.
    x, *_, count = jax.lax.while_loop(unfinished, step, carry)
    return x, _report(right - product(x), right, count)


def _report(residual: Vector, right: Vector, count: Int[Array, ""]) -> Report:
    size = jnp.linalg.norm(right)
    return Report(count, jnp.linalg.norm(residual) / jnp.where(size > 0, size, 1))
