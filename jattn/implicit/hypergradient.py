"""Hypergradients over many outer steps: what one step solved is where the next one starts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jattn.implicit.adjoint import transposed
from jattn.implicit.certificate import SLACK, certificate, doubts
from jattn.implicit.check import Check, checked_policy, factor
from jattn.implicit.condition import Condition, as_condition
from jattn.implicit.error import first_order_error
from jattn.implicit.linear_solve import ConjugateGradient, Gmres, LinearSolver, Minres, solve_linear


@dataclass(frozen=True)
class Tolerances:
    """How exactly each outer step is solved: loosely while the outer objective still falls fast.

    A step's tolerances are the loosest times |change of the outer objective in the last step| over its largest so far,
    and no less than the tightest (the idea of summable errors: Pedregosa 2016, arXiv 1602.02355).

    Attributes:
      inner: the loosest and the tightest that the inner solver is asked for.
      adjoint: the same of the relative residual of the linear solve.
    """

    inner: tuple[float, float] = (1e-3, 1e-4)
    adjoint: tuple[float, float] = (1e-2, 1e-3)

    def __post_init__(self) -> None:
        for name in ("inner", "adjoint"):
            loosest, tightest = getattr(self, name)
            if not 0 < tightest <= loosest:
                raise ValueError(f"{name} must be loosest ≥ tightest > 0; got {(loosest, tightest)}")


@no_type_check
@struct.dataclass
class HypergradientState:
    """What one outer step leaves to the next; Orbax saves it.

    Attributes:
      inner: inner variables.
      adjoint: u with Aᵀu = ∂ outer objective/∂ inner.
      moved: what the last step changed both by; None without extrapolation.
      value, change, largest: the last outer objective, its last change, and the largest one.
      step: outer steps taken.
    """

    inner: Any
    adjoint: Any
    moved: Any
    value: Float[Array, ""]
    change: Float[Array, ""]
    largest: Float[Array, ""]
    step: Int[Array, ""]


class HypergradientReport(NamedTuple):
    """How good a hypergradient is.

    Attributes:
      inner_residual: as a `Certificate`'s.
      adjoint_residual, adjoint_iterations: of the linear solve.
      inner_tolerance, adjoint_tolerance: what was asked for.
      active, margin: as a `Certificate`'s.
    """

    inner_residual: Float[Array, ""]
    adjoint_residual: Float[Array, ""]
    adjoint_iterations: Int[Array, ""]
    inner_tolerance: Float[Array, ""]
    adjoint_tolerance: Float[Array, ""]
    active: Bool[Array, " inequalities"] | None
    margin: Float[Array, ""] | None


@dataclass(frozen=True)
class Hypergradient:
    """Outer objectives and their total derivatives, step by step. Made by `hypergradient`.

    Attributes:
      objective: (inner, outer) -> outer objective.
      condition: of inner and outer variables.
      solver: (init, outer, tolerance) -> inner variables.
      tolerances: of each step.
      extrapolate: start each step from where the last two lead, rather than from the last.
      most: iterations of a linear solve at most.
      check: what happens where a step's inner residual is over ten times the loosest inner tolerance, its adjoint
        residual over ten times what it was asked for, or its margin below the distance from the solution: "warn",
        "raise", "poison" (the hypergradient, not the value), or None.
    """

    objective: Callable[[Any, Any], Float[Array, ""]]
    condition: Condition
    solver: Callable[[Any, Any, Float[Array, ""]], Any]
    tolerances: Tolerances = field(default_factory=Tolerances)
    extrapolate: bool = False
    most: int = 1000
    check: Check = "warn"

    def __post_init__(self) -> None:
        checked_policy(self.check)

    def init(self, inner: Any) -> HypergradientState:
        """The state before the first step, with inner variables to begin with."""
        dtype = optax.tree.norm(inner).dtype
        nothing, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
        adjoint = jax.tree.map(jnp.zeros_like, inner)
        moved = (adjoint, adjoint) if self.extrapolate else None
        return HypergradientState(inner, adjoint, moved, infinite, infinite, nothing, jnp.int32(0))

    def step(
        self, state: HypergradientState, outer: Any
    ) -> tuple[Float[Array, ""], Any, HypergradientState, HypergradientReport]:
        """Outer objective at the inner solution, its hypergradient, the next state, and how good they are."""
        first = state.step < 2  # of the first objective no change is known
        part = jnp.where(first, 1, jnp.minimum(1, state.change / jnp.where(state.largest > 0, state.largest, 1)))
        inner_tolerance, adjoint_tolerance = (
            jnp.clip(loosest * part, tightest, loosest).astype(state.change.dtype)
            for loosest, tightest in (self.tolerances.inner, self.tolerances.adjoint)
        )
        solved = state.inner, state.adjoint
        starts = jax.tree.map(jnp.add, solved, state.moved) if self.extrapolate else solved
        inner = self.solver(starts[0], outer, inner_tolerance)
        value, (by_inner, direct) = jax.value_and_grad(self.objective, (0, 1))(inner, outer)
        sign = self.condition.sign
        adjoint, report = solve_linear(
            transposed(self.condition, inner, outer),
            by_inner,
            structure=self.condition.structure,
            solver=self._linear_solver(adjoint_tolerance),
            start=starts[1],
        )
        _, pull = jax.vjp(lambda outer: self.condition.residual(inner, outer), outer)
        (through,) = pull(adjoint)
        gradient = jax.tree.map(lambda a, b: a - sign * b, direct, through)
        change = jnp.where(state.step == 0, jnp.inf, jnp.abs(value - state.value))
        largest = jnp.where(state.step == 0, state.largest, jnp.maximum(state.largest, change))
        made = certificate(self.condition, inner, outer)
        for doubt in (
            *doubts(made, SLACK * self.tolerances.inner[0]),
            ("relative residual of the linear solve of a hypergradient", report.residual, SLACK * adjoint_tolerance),
        ):
            trusted = factor(self.check, *doubt)
            gradient = jax.tree.map(lambda each, trusted=trusted: each * trusted.astype(each.dtype), gradient)
        moved = None
        if self.extrapolate:  # but not from where step 0 began, which solved nothing
            later = (state.step > 0).astype(value.dtype)
            moved = jax.tree.map(lambda new, old: later * (new - old), (inner, adjoint), solved)
        after = HypergradientState(inner, adjoint, moved, value, change, largest, state.step + 1)
        return (
            value,
            gradient,
            after,
            HypergradientReport(
                inner_residual=made.residual,
                adjoint_residual=report.residual,
                adjoint_iterations=report.iterations,
                inner_tolerance=inner_tolerance,
                adjoint_tolerance=adjoint_tolerance,
                active=made.active,
                margin=made.margin,
            ),
        )

    def error(self, state: HypergradientState, outer: Any) -> Float[Array, ""]:
        """The size of what the last hypergradient is off by, to first order, from two more linear solves.

        Args:
          outer: those of the step that made the state.
        """
        exact = self._linear_solver(jnp.asarray(self.tolerances.adjoint[1] ** 2, state.change.dtype))

        def solve(matrix: Callable[[Any], Any], right: Any) -> Any:
            return solve_linear(matrix, right, structure=self.condition.structure, solver=exact)[0]

        return first_order_error(self.condition, self.objective, state.inner, (outer,), state.adjoint, solve).error

    def _linear_solver(self, tolerance: Float[Array, ""]) -> LinearSolver:
        kinds = {"positive definite": ConjugateGradient, "symmetric": Minres, "general": Gmres}
        return kinds[self.condition.structure](tolerance, self.most)


def hypergradient(
    objective: Callable[[Any, Any], Float[Array, ""]],
    condition: Condition | Callable[..., Any],
    solver: Callable[[Any, Any, Float[Array, ""]], Any],
    *,
    tolerances: Tolerances | None = None,
    extrapolate: bool = False,
    most: int = 1000,
    check: Check = "warn",
) -> Hypergradient:
    """d objective(inner(outer), outer)/d outer over outer steps that each start from what the last one solved.

    ::

        problem = hypergradient(validation_loss, stationary(training_loss), solver)
        state, moments = problem.init(inner), optimiser.init(outer)
        value, gradient, state, report = problem.step(state, outer)
        updates, moments = optimiser.update(gradient, moments, outer)

    Args:
      objective: of inner and outer variables.
      condition: zero at the inner solution.
      solver: of the inner problem, from where it starts to a tolerance of its own kind, which is traced.
      tolerances: of inner solver and linear solve; they tighten as the outer objective settles.
      extrapolate: start inner solver and linear solve from x + (x - the x before): fewer steps where outer variables
        move smoothly, but not for inner variables with a domain, such as of logarithms, which this may leave.
      most: iterations of a linear solve at most.
      check: see `Hypergradient`.

    Raises:
      ValueError: no such check.
    """
    tolerances = Tolerances() if tolerances is None else tolerances
    return Hypergradient(objective, as_condition(condition), solver, tolerances, extrapolate, most, check)
