"""Krylov methods, on flat vectors.

lineax has no MINRES, its conjugate gradients stop by elements, not by the norm that the error bound of an implicit
derivative is stated in, and its GMRES looks at the residual after whole cycles alone. Its BiCGSTAB is used.
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


def generalised_minimal_residual(
    product: Product,
    right: Vector,
    start: Vector | None,
    precondition: Product | None,
    tolerance: Float[Array, ""] | float,
    most: int,
    restart: int,
) -> tuple[Vector, Report]:
    """As `conjugate_gradient`, for any A, begun anew after `restart` products (GMRES, Saad and Schultz 1986).

    M is to the right of A, so that what is made least is the residual itself, and a cycle stops where that is small
    enough. Arnoldi vectors are made orthogonal twice; Givens rotations are kept as one matrix.

    Args:
      precondition: v -> M⁻¹ v with M near A; the identity if None.
      most: products at most; also stops where a cycle brings nothing.
    """
    limit = tolerance * jnp.linalg.norm(right)
    x = jnp.zeros_like(right) if start is None else start
    residual = right if start is None else right - product(start)
    ahead = precondition or (lambda vector: vector)

    def unfinished(carry: tuple) -> Array:
        _, _, size, before, count = carry
        return (size > limit) & (size < before) & (count < most)

    def cycle(carry: tuple) -> tuple:
        x, residual, size, _, count = carry
        basis = jnp.zeros((restart + 1, right.size), right.dtype).at[0].set(residual / size)
        rotations, triangle = jnp.eye(restart + 1, dtype=right.dtype), jnp.eye(restart, dtype=right.dtype)

        def going_on(state: tuple) -> Array:
            _, rotations, _, column, sound = state
            left = jnp.abs(rotations[column, 0]) * size
            return (left > limit) & (column < restart) & (count + column < most) & sound

        def extend(state: tuple) -> tuple:
            basis, rotations, triangle, column, _ = state
            image = product(ahead(basis[column]))
            negligible = 10 * jnp.finfo(right.dtype).eps * jnp.linalg.norm(image)
            first = basis @ image
            image = image - first @ basis
            second = basis @ image
            image = image - second @ basis
            beyond = jnp.linalg.norm(image)
            entries = rotations @ (first + second).at[column + 1].set(beyond)
            length = jnp.hypot(entries[column], entries[column + 1])
            sound = length > negligible  # else A takes this direction to nothing new: it is singular
            cosine, sine = (each / jnp.where(sound, length, 1) for each in (entries[column], entries[column + 1]))
            upper, lower = rotations[column], rotations[column + 1]
            turned = rotations.at[column].set(cosine * upper + sine * lower)
            turned = turned.at[column + 1].set(cosine * lower - sine * upper)
            known = jnp.where(jnp.arange(restart) < column, entries[:-1], 0).at[column].set(length)
            basis = basis.at[column + 1].set(image / jnp.where(beyond > 0, beyond, 1))
            triangle = jnp.where(sound, triangle.at[:, column].set(known), triangle)
            return basis, jnp.where(sound, turned, rotations), triangle, column + sound, sound

        state = (basis, rotations, triangle, jnp.int32(0), jnp.bool_(True))
        basis, rotations, triangle, columns, sound = jax.lax.while_loop(going_on, extend, state)
        wanted = jnp.where(jnp.arange(restart) < columns, size * rotations[:-1, 0], 0)
        weights = jax.scipy.linalg.solve_triangular(triangle, wanted)
        x = x + ahead(weights @ basis[:-1])
        residual = right - product(x)
        return x, residual, jnp.linalg.norm(residual), size, count + columns + ~sound

    carry = (x, residual, jnp.linalg.norm(residual), jnp.array(jnp.inf, right.dtype), jnp.int32(0))
    x, residual, *_, count = jax.lax.while_loop(unfinished, cycle, carry)
    return x, _report(residual, right, count)


def _report(residual: Vector, right: Vector, count: Int[Array, ""]) -> Report:
    size = jnp.linalg.norm(right)
    return Report(count, jnp.linalg.norm(residual) / jnp.where(size > 0, size, 1))
