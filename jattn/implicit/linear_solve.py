"""Linear systems of the implicit function theorem: matrix-free, by what is known of the matrix, with a report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import lineax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jattn.implicit.krylov import (
    Product,
    Report,
    Vector,
    conjugate_gradient,
    generalised_minimal_residual,
    minimal_residual,
)

Structure = Literal["positive definite", "symmetric", "general"]
"""What is known of a matrix."""


@runtime_checkable
class LinearSolver(Protocol):
    """A method to solve A x = b.

    Attributes:
      tolerance: of ‖b − A x‖ / ‖b‖; None: 1e-5 in single precision, 1e-10 in double.
    """

    @property
    def tolerance(self) -> float | Float[Array, ""] | None: ...

    def solve(
        self, product: Product, right: Vector, structure: Structure, start: Vector | None, precondition: Product | None
    ) -> tuple[Vector, Report]:
        """x for b = `right`, A given by its products."""
        ...


@dataclass(frozen=True)
class ConjugateGradient:
    """For positive definite matrices."""

    tolerance: float | Float[Array, ""] | None = None
    most: int = 1000

    def solve(
        self, product: Product, right: Vector, structure: Structure, start: Vector | None, precondition: Product | None
    ) -> tuple[Vector, Report]:
        if structure != "positive definite":
            raise ValueError(f"linear_solver: conjugate gradients need a positive definite matrix; this is {structure}")
        return conjugate_gradient(product, right, start, precondition, tolerance_of(self, right.dtype), self.most)


@dataclass(frozen=True)
class Minres:
    """For symmetric matrices, definite or not."""

    tolerance: float | Float[Array, ""] | None = None
    most: int = 1000

    def solve(
        self, product: Product, right: Vector, structure: Structure, start: Vector | None, precondition: Product | None
    ) -> tuple[Vector, Report]:
        if structure == "general":
            raise ValueError("linear_solver: MINRES needs a symmetric matrix; this is general")
        if precondition is not None:
            raise ValueError("preconditioner must be None with MINRES, which has none here")
        return minimal_residual(product, right, start, tolerance_of(self, right.dtype), self.most)


@dataclass(frozen=True)
class Gmres:
    """For any matrix: GMRES, begun anew after so many products."""

    tolerance: float | Float[Array, ""] | None = None
    most: int = 1000
    restart: int = 30

    def solve(
        self, product: Product, right: Vector, structure: Structure, start: Vector | None, precondition: Product | None
    ) -> tuple[Vector, Report]:
        tolerance, restart = tolerance_of(self, right.dtype), min(self.restart, right.size)
        return generalised_minimal_residual(product, right, start, precondition, tolerance, self.most, restart)


@dataclass(frozen=True)
class BiCGStab:
    """For any matrix, in constant memory: lineax's BiCGSTAB."""

    tolerance: float | Float[Array, ""] | None = None
    most: int = 1000

    def solve(
        self, product: Product, right: Vector, structure: Structure, start: Vector | None, precondition: Product | None
    ) -> tuple[Vector, Report]:
        # Scaled to a right side of norm 1: lineax's relative tolerances are of each element, and some may be 0.
        shape, size = jax.eval_shape(lambda: right), jnp.linalg.norm(right)
        size = jnp.where(size > 0, size, 1)
        options: dict[str, Any] = {} if start is None else {"y0": start / size}
        if precondition is not None:
            options["preconditioner"] = lineax.FunctionLinearOperator(precondition, shape)
        tolerance: Any = tolerance_of(self, right.dtype)
        method = lineax.BiCGStab(rtol=0.0, atol=tolerance, norm=jnp.linalg.norm, max_steps=self.most)
        operator = lineax.FunctionLinearOperator(product, shape)
        solution = lineax.linear_solve(operator, right / size, method, options=options, throw=False)
        x = size * solution.value
        residual = jnp.linalg.norm(right - product(x)) / size
        return x, Report(2 * jnp.asarray(solution.stats["num_steps"], jnp.int32), residual)


@dataclass(frozen=True)
class Dense:
    """Make the matrix, column by column, and factorise it: Cholesky if positive definite, otherwise LU."""

    tolerance: float | None = None

    def solve(
        self, product: Product, right: Vector, structure: Structure, start: Vector | None, precondition: Product | None
    ) -> tuple[Vector, Report]:
        matrix = jax.vmap(product, out_axes=1)(jnp.eye(right.size, dtype=right.dtype))
        definite = structure == "positive definite"
        x = jax.scipy.linalg.solve(matrix, right, assume_a="pos" if definite else "gen")
        size = jnp.linalg.norm(right)
        residual = jnp.linalg.norm(right - matrix @ x) / jnp.where(size > 0, size, 1)
        return x, Report(jnp.int32(0), residual)


@dataclass(frozen=True)
class Automatic:
    """`Dense` for few unknowns; else conjugate gradients, MINRES or GMRES, by the structure.

    Attributes:
      dense_below: how many unknowns are few.
    """

    tolerance: float | Float[Array, ""] | None = None
    most: int = 1000
    dense_below: int = 64

    def solve(
        self, product: Product, right: Vector, structure: Structure, start: Vector | None, precondition: Product | None
    ) -> tuple[Vector, Report]:
        chosen: LinearSolver = Gmres(self.tolerance, self.most)
        if structure == "positive definite":
            chosen = ConjugateGradient(self.tolerance, self.most)
        elif structure == "symmetric" and precondition is None:
            chosen = Minres(self.tolerance, self.most)
        if right.size < self.dense_below and start is None:
            chosen = Dense()
        return chosen.solve(product, right, structure, start, precondition)


def solve_linear(
    matrix: Callable[[Any], Any],
    right: PyTree,
    *,
    structure: Structure,
    solver: LinearSolver,
    start: PyTree | None = None,
    precondition: Callable[[Any], Any] | None = None,
    judge: Callable[[Report], Float[Array, ""]] | None = None,
) -> tuple[Any, Report]:
    """x with A x = b, differentiable in b and in what `matrix` closes over, forward and reverse, to any order.

    Args:
      matrix: v -> A v, linear, for v like `right`.
      start: the first x, where the method takes one.
      precondition: v -> M⁻¹ v with M near A; symmetric, as it is used for transposed systems too.
      judge: from the report a factor of x: 1, or not-a-number to spoil it. It is asked after every solve, of
        derivatives too, where no report can be given out.

    Raises:
      ValueError: the solver does not fit the structure.
    """
    flat, restore = ravel_pytree(right)

    def along(function: Callable[[Any], Any]) -> Product:
        return lambda vector: ravel_pytree(function(restore(vector)))[0]

    first = None if start is None else ravel_pytree(start)[0]
    conditioned = None if precondition is None else along(precondition)

    def solve(product: Product, right: Vector) -> tuple[Vector, Report]:
        x, report = solver.solve(product, right, structure, first, conditioned)
        return (x if judge is None else x * judge(report)), report

    x, report = jax.lax.custom_linear_solve(
        along(matrix), flat, solve, transpose_solve=solve, symmetric=structure != "general", has_aux=True
    )
    return restore(x), report


def tolerance_of(solver: LinearSolver, dtype: Any) -> Float[Array, ""] | float:
    """The solver's tolerance, or the default for that precision."""
    if solver.tolerance is not None:
        return solver.tolerance
    return 1e-10 if dtype == jnp.float64 else 1e-5
