"""LV-HBA: constrained bilevel optimisation in one loop, by first derivatives alone (arXiv 2401.16164).

Yao, Yu, Zeng and Zhang, ICLR 2024. The constraint that the inner variables be optimal is f - v <= 0 with the
proximal Lagrangian value function

    v(x, y, z) = min over θ in Y, max over λ in Z, of φ = f(x, θ) + λᵀg(x, θ) + ‖θ - y‖² / 2γ₁ - ‖λ - z‖² / 2γ₂

whose saddle point (θ, λ) is unique, so that v is smooth even where the inner problem has many solutions. The method
follows the saddle point with one step, and takes one of the gradient of F / c + f - v. Without constraints v is a
Moreau envelope, and the method is MEHA.

| paper | here |
| --- | --- |
| x, y | outer, inner |
| F, f, g | `problem.outer`, `problem.inner`, `problem.constraints` |
| θ | proximal |
| λ in Z = [0, r]ᵖ, or [-r, r]ᵖ for equalities | multipliers, `Proximity.radius` |
| z | centers |
| γ₁, γ₂ | `Proximity.inner`, `Proximity.multiplier` |
| η | saddle_step |
| α, β | outer_step, center_step |
| c_k | penalty |
| C | what `problem.project_joint` projects on |
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jattn.bilevel.method import STARTING, Method, Schedule, State, value_at
from jattn.bilevel.penalty import growing_penalty
from jattn.bilevel.problem import Problem, Rows, Variables, clip_multipliers, product


class StepSizeWarning(UserWarning):
    """A step is larger than the conditions allow under which the method is known to converge."""


class MultiplierRadiusWarning(UserWarning):
    """A multiplier lies on the bound that was set to it: the true one may be larger."""


class SaddlePoint(NamedTuple):
    """Where the proximal Lagrangian is least in the inner variables and greatest in the multipliers."""

    proximal: Variables
    multipliers: Rows


@dataclass(frozen=True)
class Proximity:
    """The proximal Lagrangian: how near its saddle point is drawn to what, and how large multipliers can be.

    Attributes:
      inner: γ₁; smaller is nearer. Below 1/ρ where the inner objective is ρ-weakly convex.
      multiplier: γ₂.
      radius: r, the largest multiplier of a constraint row.
    """

    inner: Float[Array, ""] | float = 1.0
    multiplier: Float[Array, ""] | float = 1.0
    radius: Float[Array, ""] | float = 100.0

    def lagrangian(
        self, problem: Problem, outer: Variables, saddle: SaddlePoint, inner: Variables, centers: Rows
    ) -> Float[Array, ""]:
        """φ: the inner Lagrangian at (outer, saddle), with the squared distances to inner and centers."""
        return (
            problem.inner(outer, saddle.proximal)
            + product(saddle.multipliers, problem.constraints(outer, saddle.proximal))
            + _squared_distance(saddle.proximal, inner) / (2 * self.inner)
            - _squared_distance(saddle.multipliers, centers) / (2 * self.multiplier)
        )

    def directions(
        self, problem: Problem, outer: Variables, saddle: SaddlePoint, inner: Variables, centers: Rows
    ) -> SaddlePoint:
        """The gradient of φ in the inner variables and its negative in the multipliers: 0 at the saddle point."""
        gradient = jax.grad(lambda saddle: self.lagrangian(problem, outer, saddle, inner, centers))(saddle)
        return SaddlePoint(gradient.proximal, optax.tree.scale(-1, gradient.multipliers))

    def step(
        self,
        problem: Problem,
        outer: Variables,
        saddle: SaddlePoint,
        inner: Variables,
        centers: Rows,
        size: Float[Array, ""] | float,
    ) -> SaddlePoint:
        """One projected step of descent and ascent, both from the old point."""
        moved = _less(saddle, size, self.directions(problem, outer, saddle, inner, centers))
        return SaddlePoint(problem.to_inner(moved.proximal), clip_multipliers(moved.multipliers, self.radius))

    def largest_step(self, problem: Problem, outer: Variables, saddle: SaddlePoint, key: Key[Array, ""]) -> Array:
        """ρ / L²: steps of descent and ascent below it are known to converge, and above twice it may not contract.

        ρ = min(1/γ₁, 1/γ₂); L is the Lipschitz constant of the directions in the saddle point, by power iteration
        from a random start: exactly for quadratic objectives and affine constraints, elsewhere at this point.
        """

        def directions(at: SaddlePoint) -> SaddlePoint:
            return self.directions(problem, outer, at, saddle.proximal, saddle.multipliers)

        lipschitz = largest_singular_value(directions, saddle, key)
        strength = jnp.minimum(1 / jnp.asarray(self.inner), 1 / jnp.asarray(self.multiplier))
        return strength / lipschitz**2


def value_function(
    problem: Problem,
    proximity: Proximity,
    outer: Variables,
    inner: Variables,
    centers: Rows,
    *,
    tolerance: float = 1e-6,
    iterations: int = 10_000,
) -> Float[Array, ""]:
    """v: the proximal Lagrangian at its saddle point. Its gradients, by `jax.grad`, are the paper's.

    Those are, by Danskin's theorem, the partial derivatives of φ at the saddle point, which is not differentiated:
    ∇f + ∇gᵀλ in the outer variables, (y - θ)/γ₁ in the inner ones, (λ - z)/γ₂ in the centers. Hence no second
    derivatives.

    Args:
      centers: one multiplier for each constraint row, as `problem.constraints` has them.
      tolerance, iterations: of `saddle_point`.
    """
    saddle = saddle_point(problem, proximity, outer, inner, centers, tolerance=tolerance, iterations=iterations)
    return proximity.lagrangian(problem, outer, saddle, inner, centers)


def saddle_point(
    problem: Problem,
    proximity: Proximity,
    outer: Variables,
    inner: Variables,
    centers: Rows,
    *,
    tolerance: float = 1e-6,
    iterations: int = 10_000,
) -> SaddlePoint:
    """θ and λ by Korpelevich's extragradient method (1976); no gradient flows through.

    Args:
      tolerance: the largest norm of the projected step, divided by its size, that counts as converged.
      iterations: the most that are made.
    """
    outer, inner, centers = jax.lax.stop_gradient((outer, inner, centers))
    start = SaddlePoint(problem.to_inner(inner), clip_multipliers(centers, proximity.radius))
    condition = proximity.largest_step(problem, outer, start, jax.random.key(0))
    strength = jnp.minimum(1 / jnp.asarray(proximity.inner), 1 / jnp.asarray(proximity.multiplier))
    size = 0.5 * jnp.sqrt(condition / strength)  # half of 1/L

    def extragradient(carry: tuple) -> tuple:
        saddle, _, count = carry
        ahead = proximity.step(problem, outer, saddle, inner, centers, size)
        moved = _less(saddle, size, proximity.directions(problem, outer, ahead, inner, centers))
        after = SaddlePoint(problem.to_inner(moved.proximal), clip_multipliers(moved.multipliers, proximity.radius))
        return after, optax.tree.norm(optax.tree.sub(after, saddle)) / size, count + 1

    def unconverged(carry: tuple) -> Array:
        _, residual, count = carry
        return (residual > tolerance) & (count < iterations)

    saddle, _, _ = jax.lax.while_loop(unconverged, extragradient, (start, jnp.full_like(size, jnp.inf), 0))
    return jax.lax.stop_gradient(saddle)


@dataclass(frozen=True)
class LVHBA(Method):
    """LV-HBA. Constraints must be convex in outer and inner variables jointly, with a projection on them.

    Memory: "proximal", "multipliers" and "centers".

    Attributes:
      outer_step: α, of outer and inner variables.
      center_step: β.
      saddle_step: η; `Proximity.largest_step` is what it should not exceed.
      penalty: c_k, growing for an exact answer.
      proximity: γ₁, γ₂ and r.
    """

    accepts: ClassVar = frozenset({"inequality", "equality", "project_outer", "project_inner", "project_joint"})

    outer_step: Schedule = 0.1
    center_step: Schedule = 0.1
    saddle_step: Schedule = 0.1
    penalty: Schedule = growing_penalty()  # noqa: RUF009, a function and immutable
    proximity: Proximity = Proximity()

    def require(self, problem: Problem) -> None:
        if problem.constrained and problem.project_joint is None:
            raise ValueError(
                "problem.project_joint must be given with constraints: LVHBA projects on them; got None. "
                "jattn.bilevel.projections has projections"
            )

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        zeros = optax.tree.zeros_like(problem.constraints(outer, inner))
        return {"proximal": inner, "multipliers": zeros, "centers": zeros}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        drawn = problem.sampled(key)
        saddle = self.proximity.step(
            drawn,
            state.outer,
            _saddle(state),
            state.inner,
            state.memory["centers"],
            value_at(self.saddle_step, state.step),
        )
        steps = (value_at(self.outer_step, state.step), value_at(self.center_step, state.step))
        outer, inner, centers = self._descend(drawn, state, saddle, *steps)
        return outer, inner, {"proximal": saddle.proximal, "multipliers": saddle.multipliers, "centers": centers}

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        """Penalty, value gap f - φ, stationarity (the paper's residual R_k, by projected unit steps), saturation.

        Saturation is the largest multiplier by its bound. At 1 the bound is too small, or the method far off.
        """
        measured = problem.whole(jax.random.fold_in(state.key, STARTING))
        point = (state.outer, state.inner, state.memory["centers"])
        step = optax.tree.sub(point, self._descend(measured, state, _saddle(state), 1.0, 1.0))
        penalty = jnp.asarray(value_at(self.penalty, state.step))
        value = self.proximity.lagrangian(measured, state.outer, _saddle(state), state.inner, state.memory["centers"])
        return {
            "penalty": penalty,
            "value_gap": measured.inner(state.outer, state.inner) - value,
            "stationarity": penalty * optax.tree.norm(step),
            "saturation": self._saturation(state),
        }

    def examine(self, problem: Problem, state: State) -> None:
        key = jax.random.fold_in(state.key, STARTING)
        largest_step = jax.jit(partial(self.proximity.largest_step, problem.whole(key)))
        largest = float(largest_step(state.outer, _saddle(state), key))
        size = float(value_at(self.saddle_step, state.step))
        if not size <= 2 * largest:
            warnings.warn(
                f"saddle_step {size:.3g} is above {2 * largest:.3g}, twice ρ/L² after {int(state.step)} iterations: "
                "the steps to the saddle point may diverge",
                StepSizeWarning,
                stacklevel=4,
            )
        if float(self._saturation(state)) >= 1:
            warnings.warn(
                f"proximity.radius {float(self.proximity.radius):.3g} is reached by a multiplier after "
                f"{int(state.step)} iterations: the inner problem's multipliers may be larger",
                MultiplierRadiusWarning,
                stacklevel=4,
            )

    def _saturation(self, state: State) -> Float[Array, ""]:
        return optax.tree.norm(state.memory["multipliers"], ord="inf") / self.proximity.radius

    def _descend(
        self, problem: Problem, state: State, saddle: SaddlePoint, step: Any, center_step: Any
    ) -> tuple[Variables, Variables, Rows]:
        """Outer, inner and centers after a projected step down F / c + f - φ."""
        penalty = value_at(self.penalty, state.step)

        def penalised(outer: Variables, inner: Variables, centers: Rows) -> Float[Array, ""]:
            value = self.proximity.lagrangian(problem, outer, saddle, inner, centers)
            return problem.outer(outer, inner) / penalty + problem.inner(outer, inner) - value

        point = (state.outer, state.inner, state.memory["centers"])
        of_outer, of_inner, of_centers = jax.grad(penalised, argnums=(0, 1, 2))(*point)
        outer, inner = problem.to_both(_less(state.outer, step, of_outer), _less(state.inner, step, of_inner))
        moved = _less(state.memory["centers"], center_step, of_centers)
        return outer, inner, clip_multipliers(moved, self.proximity.radius)


def largest_singular_value(
    function: Callable[[Any], Any], at: PyTree[Array], key: Key[Array, ""], iterations: int = 50
) -> Float[Array, ""]:
    """The norm of a function's Jacobian at a point, from below, by power iteration from a random start."""

    _, push = jax.linearize(function, at)
    pull = jax.linear_transpose(push, at)

    def unit(tree: PyTree[Array]) -> PyTree[Array]:
        return optax.tree.scale(1 / jnp.maximum(optax.tree.norm(tree), jnp.finfo(jnp.float32).tiny), tree)

    start = unit(optax.tree.random_like(key, at))
    direction = jax.lax.fori_loop(0, iterations, lambda _, vector: unit(pull(push(vector))[0]), start)
    return jnp.asarray(optax.tree.norm(push(direction)))


def _saddle(state: State) -> SaddlePoint:
    return SaddlePoint(state.memory["proximal"], state.memory["multipliers"])


def _less(tree: Any, size: Any, direction: Any) -> Any:
    return optax.tree.add_scale(tree, -size, direction)


def _squared_distance(one: Any, other: Any) -> Any:
    return optax.tree.norm(optax.tree.sub(one, other), squared=True)
