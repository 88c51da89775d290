"""BLOCC: coupled constraints by two primal-dual inner solutions, and a penalty.

Jiang, Xiao, Tenorio, Real-Rojas, Marques and Chen, "A Primal-Dual-Assisted Penalty Approach to Bilevel Optimization
with Coupled Constraints", NeurIPS 2024. One solution is of the inner problem, the other with the outer objective added.

| paper | here |
| --- | --- |
| x, y | outer, inner |
| f, g, g^c | `problem.outer`, `problem.inner`, `problem.constraints` |
| γ | penalty |
| y_F, μ_F / γ | inner, multipliers |
| y_g, μ_g | follower, follower_multipliers |
| η; η₁, η₂ | outer_step; inner_step, multiplier_step |
| T | inner_steps |
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jattn.bilevel.method import Method, Schedule, State, value_at
from jattn.bilevel.problem import Problem, Rows, Variables, clip_multipliers, product


@dataclass(frozen=True)
class BLOCC(Method):
    """BLOCC. The inner objective must be strongly convex and the constraints convex, in the inner variables.

    Memory: "multipliers", "follower", "follower_multipliers".

    Attributes:
      outer_step: of the hypergradient.
      inner_steps: of both primal-dual solutions in each iteration, from where they are.
      inner_step, multiplier_step: their sizes; descent comes first, ascent is at the new inner variables.
      penalty: the bias is proportional to its inverse.
    """

    accepts: ClassVar = frozenset({"inequality", "equality", "project_outer", "project_inner"})

    outer_step: Schedule = 0.05
    inner_steps: int = 20
    inner_step: Schedule = 0.1
    multiplier_step: Schedule = 0.1
    penalty: Schedule = 10.0

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        zeros = optax.tree.zeros_like(problem.constraints(outer, inner))
        return {"multipliers": zeros, "follower": inner, "follower_multipliers": zeros}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        penalty, memory = value_at(self.penalty, state.step), state.memory
        inner_step, multiplier_step = value_at(self.inner_step, state.step), value_at(self.multiplier_step, state.step)
        both_key, alone_key, key = jax.random.split(key, 3)

        def lagrangian(
            drawn: Problem, weight: Any, outer: Variables, inner: Variables, multipliers: Rows
        ) -> Float[Array, ""]:
            objective = drawn.inner(outer, inner) + weight * drawn.outer(outer, inner)
            return objective + product(multipliers, drawn.constraints(outer, inner))

        def primal_dual(weight: Any, inner: Variables, multipliers: Rows, key: Key[Array, ""]) -> tuple:
            def one(carry: tuple, key: Key[Array, ""]) -> tuple[tuple, None]:
                inner, multipliers = carry
                drawn = problem.sampled(key)
                gradient = jax.grad(lagrangian, argnums=3)(drawn, weight, state.outer, inner, multipliers)
                inner = problem.to_inner(optax.tree.add_scale(inner, -inner_step, gradient))
                rows = drawn.constraints(state.outer, inner)
                return (inner, clip_multipliers(optax.tree.add_scale(multipliers, multiplier_step, rows))), None

            return jax.lax.scan(one, (inner, multipliers), jax.random.split(key, self.inner_steps))[0]

        inner, multipliers = primal_dual(1 / penalty, state.inner, memory["multipliers"], both_key)
        follower, follower_multipliers = primal_dual(0.0, memory["follower"], memory["follower_multipliers"], alone_key)
        drawn = problem.sampled(key)

        def penalised(outer: Variables) -> Float[Array, ""]:
            with_outer = lagrangian(drawn, 1 / penalty, outer, inner, multipliers)
            return penalty * (with_outer - lagrangian(drawn, 0.0, outer, follower, follower_multipliers))

        step = value_at(self.outer_step, state.step)
        outer = optax.tree.add_scale(state.outer, -step, jax.grad(penalised)(state.outer))
        new = {"multipliers": multipliers, "follower": follower, "follower_multipliers": follower_multipliers}
        return problem.to_outer(outer), inner, new

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        return {"penalty": jnp.asarray(value_at(self.penalty, state.step))}
