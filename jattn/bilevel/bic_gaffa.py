"""BiC-GAFFA: coupled constraints without a projection on them, by a regularised gap function (arXiv 2406.01992).

Yao, Yin, Zeng and Zhang, "Overcoming Lower-Level Constraints in Bilevel Optimization: A Novel Approach with
Regularized Gap Functions", ICLR 2025. The gap of the inner problem's Lagrangian is

    G = f(x, y) + (‖[z + γ₂ g(x, y)]₊‖² - ‖z‖²) / 2γ₂ - min over θ in Y of f(x, θ) + zᵀg(x, θ) + ‖θ - y‖² / 2γ₁

It is followed with one step to θ, and F / c + G goes down by first derivatives.

| paper | here |
| --- | --- |
| x, y | outer, inner |
| F, f, g | `problem.outer`, `problem.inner`, `problem.constraints` |
| θ | proximal |
| z in [0, r]ᵖ, or [-r, r]ᵖ for equalities | multipliers, radius |
| γ₁, γ₂ | inner_proximity, multiplier_proximity |
| η; α of x and y, β of z | proximal_step; outer_step, multiplier_step |
| c_k | penalty |
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jattn.bilevel.method import Method, Schedule, State, value_at
from jattn.bilevel.penalty import growing_penalty
from jattn.bilevel.problem import Problem, Rows, Variables, clip_multipliers, product


@dataclass(frozen=True)
class BiCGAFFA(Method):
    """BiC-GAFFA. Inner objective and constraints must be convex in the inner variables.

    Memory: "proximal", "multipliers".

    Attributes:
      outer_step: of outer and inner variables.
      multiplier_step, proximal_step: of the others.
      penalty: growing for an exact answer.
      inner_proximity, multiplier_proximity: smaller keep nearer.
      radius: the largest multiplier of a row.
    """

    accepts: ClassVar = frozenset({"inequality", "equality", "project_outer", "project_inner"})

    outer_step: Schedule = 0.05
    multiplier_step: Schedule = 0.05
    proximal_step: Schedule = 0.05
    penalty: Schedule = growing_penalty()  # noqa: RUF009, a function and immutable
    inner_proximity: float | Float[Array, ""] = 1.0
    multiplier_proximity: float | Float[Array, ""] = 1.0
    radius: float | Float[Array, ""] = 100.0

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        return {"proximal": inner, "multipliers": optax.tree.zeros_like(problem.constraints(outer, inner))}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        drawn, penalty = problem.sampled(key), value_at(self.penalty, state.step)

        def proximal_value(outer: Variables, proximal: Variables, inner: Variables, multipliers: Rows) -> Array:
            distance = optax.tree.norm(optax.tree.sub(proximal, inner), squared=True)
            coupled = product(multipliers, drawn.constraints(outer, proximal))
            return drawn.inner(outer, proximal) + coupled + distance / (2 * self.inner_proximity)

        def penalised(outer: Variables, inner: Variables, multipliers: Rows) -> Array:
            raised = optax.tree.add_scale(multipliers, self.multiplier_proximity, drawn.constraints(outer, inner))
            squared = product(raised := clip_multipliers(raised), raised) - product(multipliers, multipliers)
            gap = drawn.inner(outer, inner) + squared / (2 * self.multiplier_proximity)
            return drawn.outer(outer, inner) / penalty + gap - proximal_value(outer, proximal, inner, multipliers)

        point = (state.outer, state.inner, state.memory["multipliers"])
        proximal_step, step, multiplier_step = (
            value_at(each, state.step) for each in (self.proximal_step, self.outer_step, self.multiplier_step)
        )
        direction = jax.grad(proximal_value, argnums=1)(state.outer, state.memory["proximal"], *point[1:])
        proximal = problem.to_inner(optax.tree.add_scale(state.memory["proximal"], -proximal_step, direction))
        of_outer, of_inner, of_multipliers = jax.grad(penalised, argnums=(0, 1, 2))(*point)
        outer = problem.to_outer(optax.tree.add_scale(state.outer, -step, of_outer))
        inner = problem.to_inner(optax.tree.add_scale(state.inner, -step, of_inner))
        multipliers = optax.tree.add_scale(state.memory["multipliers"], -multiplier_step, of_multipliers)
        return outer, inner, {"proximal": proximal, "multipliers": clip_multipliers(multipliers, self.radius)}

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        largest = jnp.asarray(optax.tree.norm(state.memory["multipliers"], ord="inf"))
        return {"penalty": jnp.asarray(value_at(self.penalty, state.step)), "saturation": largest / self.radius}
