"""BOME: first derivatives alone, by a barrier on the inner objective's excess over a few steps (arXiv 2209.08709).

Liu, Ye, Wright, Stone and Liu, NeurIPS 2022.

| paper | here |
| --- | --- |
| v, θ | outer, inner |
| f, g | `problem.outer`, `problem.inner` |
| θ^(T), T, α | ahead, inner_steps, inner_step |
| q = g(v, θ) - g(v, θ^(T)) | excess |
| λ, φ = η‖∇q‖², η | multiplier, barrier |
| ξ | step |
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jattn.bilevel.hypergradient_descent import descend
from jattn.bilevel.method import Method, Schedule, State, value_at
from jattn.bilevel.problem import Problem, Variables


@dataclass(frozen=True)
class BOME(Method):
    """Both kinds of variables move down ∇F + λ∇q, with λ such that q falls at least as fast as barrier ‖∇q‖².

    Inner variables cannot be projected: where a bound holds them ∇q does not vanish, and λ no longer grows.

    Memory: "multiplier".

    Attributes:
      step: of outer and inner variables.
      inner_steps, inner_step: to the inner variables ahead, from the present ones.
      barrier: η.
    """

    accepts: ClassVar = frozenset({"project_outer"})

    step: Schedule = 0.05
    inner_steps: int = 10
    inner_step: Schedule = 0.1
    barrier: float | Float[Array, ""] = 0.5

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Array]:
        return {"multiplier": jnp.zeros_like(optax.tree.norm((outer, inner)))}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        ahead_key, key = jax.random.split(key)
        drawn, point = problem.sampled(key), (state.outer, state.inner)
        inner_step, step = value_at(self.inner_step, state.step), value_at(self.step, state.step)
        ahead = descend(problem, *point, ahead_key, inner_step, self.inner_steps)

        def excess(outer: Variables, inner: Variables) -> Float[Array, ""]:
            return drawn.inner(outer, inner) - drawn.inner(outer, ahead)

        of_outer, of_excess = (jax.grad(function, argnums=(0, 1))(*point) for function in (drawn.outer, excess))
        squared = optax.tree.norm(of_excess, squared=True)
        missing = jnp.maximum(self.barrier * squared - optax.tree.vdot(of_outer, of_excess), 0)
        # At an exact inner solution of vanishing gradient there is nothing to multiply.
        multiplier = jnp.where(squared > 0, missing / jnp.where(squared > 0, squared, 1), 0)
        outer, inner = optax.tree.add_scale(point, -step, optax.tree.add_scale(of_outer, multiplier, of_excess))
        return problem.to_outer(outer), inner, {"multiplier": multiplier}

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        return {"multiplier": state.memory["multiplier"]}
