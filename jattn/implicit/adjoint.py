"""Ways to differentiate a solution by the outer variables."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jattn.implicit.condition import Condition
from jattn.implicit.directions import random_direction
from jattn.implicit.krylov import Report
from jattn.implicit.linear_solve import Automatic, LinearSolver, solve_linear

Judge = Callable[[Report], Float[Array, ""]]
MOST_POWERS = 10
"""Steps of the power method by which a series is judged."""


@dataclass(frozen=True)
class Implicit:
    """By the implicit function theorem: A u = B v with A = -∂F/∂inner, B = ∂F/∂outer (Blondel et al. 2022, equation 2).

    Attributes:
      linear_solver: for A.
      preconditioner: (inner, *outer) -> (v -> M⁻¹ v) with M near A, symmetric where A is; None: none. Made once, but
        for each vector where it closes over traced values: what is costly to make is better given as an outer argument.
    """

    linear_solver: LinearSolver = field(default_factory=Automatic)
    preconditioner: Callable[..., Callable[[Any], Any]] | None = None

    def tangent(self, condition: Condition, inner: Any, image: Any, judge: Judge | None, *outer: Any) -> Any:
        """du of F(inner + du, outer + v) = 0, for `image` = B v."""
        matrix, sign = derivative(condition, inner, *outer), condition.sign
        precondition = None if self.preconditioner is None else self.preconditioner(inner, *outer)
        right = jax.tree.map(lambda each: -sign * each, image)
        tangent, _ = solve_linear(
            matrix,
            right,
            structure=condition.structure,
            solver=self.linear_solver,
            precondition=precondition,
            judge=judge,
        )
        return tangent


@dataclass(frozen=True)
class Neumann:
    """A⁻¹ by the first terms of its series, rate · Σ (1 - rate · A)ⁱ: for maps that contract, small steps downhill.

    What is left out is a part ‖1 - rate · A‖ ** terms of the whole. A series that diverges is spoken of (`check`).

    Attributes:
      terms: at least 1.
      rate: 1 for fixed points, whose A is 1 - ∂map/∂inner; below 2 / the largest eigenvalue of a Hessian.
    """

    terms: int
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"terms must be at least 1; got {self.terms}")

    def tangent(self, condition: Condition, inner: Any, image: Any, judge: Judge | None, *outer: Any) -> Any:
        """As that of `Implicit`, nearly."""
        matrix, sign = derivative(condition, inner, *outer), condition.sign
        right = jax.tree.map(lambda each: -sign * self.rate * each, image)

        def step(total: Any, _: None) -> tuple[Any, None]:
            left = jax.tree.map(lambda b, x, ax: b + x - self.rate * ax, right, total, matrix(total))
            return left, None

        return jax.lax.scan(step, right, None, length=self.terms - 1)[0]

    def growth(self, condition: Condition, inner: Any, *outer: Any) -> Float[Array, ""]:
        """About how many times as long as the last a term is, late in the series; above 1 it diverges.

        By `terms` steps of the power method on 1 - rate · A, or ten if that is less, from a random direction. Without
        derivatives.
        """
        inner, outer = jax.lax.stop_gradient((inner, outer))
        matrix = derivative(condition, inner, *outer)

        def step(term: Any, _: None) -> tuple[Any, Array]:
            after = jax.tree.map(lambda x, ax: x - self.rate * ax, term, matrix(term))
            size = optax.tree.norm(after)
            return jax.tree.map(lambda each: each / jnp.where(size > 0, size, 1), after), size

        steps = min(self.terms, MOST_POWERS)
        return jax.lax.stop_gradient(jax.lax.scan(step, random_direction(inner), None, length=steps)[1][-1])


@dataclass(frozen=True)
class OneStep:
    """The derivative of one more step, as if it began at a constant (Bolte, Pauwels and Vaiter 2023, arXiv 2305.13768).

    Attributes:
      rate: 1 for fixed points, the step's size where a gradient is zero.
    """

    rate: float = 1.0

    def tangent(self, condition: Condition, inner: Any, image: Any, judge: Judge | None, *outer: Any) -> Any:
        """As that of `Implicit`, nearly."""
        return jax.tree.map(lambda each: -condition.sign * self.rate * each, image)


@dataclass(frozen=True)
class Unrolled:
    """Through every step of the solver.

    Attributes:
      segment: steps between which states are kept; what is between is computed again. None: all are kept. The square
        root of the steps needs the least memory.
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None and self.segment < 1:
            raise ValueError(f"segment must be at least 1; got {self.segment}")


@dataclass(frozen=True)
class Truncated:
    """Through the last steps of the solver alone (Shaban et al. 2019, arXiv 1810.10667)."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")


Adjoint = Implicit | Neumann | OneStep | Unrolled | Truncated


def derivative(condition: Condition, inner: Any, *outer: Any) -> Callable[[Any], Any]:
    """v -> sign · ∂F/∂inner v, linearised once."""
    _, linear = jax.linearize(lambda inner: condition.residual(inner, *outer), inner)
    return lambda vector: jax.tree.map(lambda each: condition.sign * each, linear(vector))


def transposed(condition: Condition, inner: Any, *outer: Any) -> Callable[[Any], Any]:
    """v -> sign · (∂F/∂inner)ᵀ v, linearised once."""
    matrix = derivative(condition, inner, *outer)
    if condition.structure != "general":
        return matrix
    pull = jax.linear_transpose(matrix, inner)
    return lambda vector: pull(vector)[0]
