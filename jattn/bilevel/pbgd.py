"""PBGD: gradient descent on the outer objective with the inner value gap as a penalty (arXiv 2302.05185).

Shen and Chen, ICML 2023: V-PBGD, of the value gap.

| paper | here |
| --- | --- |
| x, y | outer, inner |
| f, g | `problem.outer`, `problem.inner` |
| ω, with T steps of size β on g | follower, inner_steps, inner_step |
| γ | penalty |
| α γ | step: the direction is divided by γ, so that one step size suits all penalties |
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jattn.bilevel.hypergradient_descent import descend
from jattn.bilevel.method import Method, Schedule, State, value_at
from jattn.bilevel.problem import Problem, Variables


@dataclass(frozen=True)
class PBGD(Method):
    """Descent of outer and inner variables together on F / penalty + f - min f.

    Memory: "follower", the inner variables of the inner problem alone.

    Attributes:
      step: of outer and inner variables.
      inner_steps, inner_step: of the follower in each iteration.
      penalty: the bias is proportional to its inverse.
    """

    accepts: ClassVar = frozenset({"project_outer", "project_inner"})

    step: Schedule = 0.1
    inner_steps: int = 10
    inner_step: Schedule = 0.1
    penalty: Schedule = 10.0

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        return {"follower": inner}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        follower_key, key = jax.random.split(key)
        drawn, penalty = problem.sampled(key), value_at(self.penalty, state.step)
        inner_step, step = value_at(self.inner_step, state.step), value_at(self.step, state.step)
        follower = descend(problem, state.outer, state.memory["follower"], follower_key, inner_step, self.inner_steps)

        def penalised(outer: Variables, inner: Variables) -> Float[Array, ""]:
            gap = drawn.inner(outer, inner) - drawn.inner(outer, follower)
            return drawn.outer(outer, inner) / penalty + gap

        point = (state.outer, state.inner)
        outer, inner = optax.tree.add_scale(point, -step, jax.grad(penalised, argnums=(0, 1))(*point))
        return problem.to_outer(outer), problem.to_inner(inner), {"follower": follower}

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        return {"penalty": jnp.asarray(value_at(self.penalty, state.step))}
