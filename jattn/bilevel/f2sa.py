"""F2SA: a fully first-order stochastic method with a growing multiplier (arXiv 2301.10945).

Kwon, Kwon, Wright and Nowak, ICML 2023. One copy of the inner variables follows the inner problem, another the inner
objective with the outer one added; the difference of their gradients, times the multiplier, is the hypergradient.

| paper | here |
| --- | --- |
| x, y, z | outer, inner, follower |
| f, g | `problem.outer`, `problem.inner` |
| λ_k | penalty |
| T | inner_steps |
| γ_k; α_k λ_k; ξ α_k | inner_step, both; outer_step |
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jattn.bilevel.method import Method, Schedule, State, value_at
from jattn.bilevel.penalty import growing_penalty
from jattn.bilevel.problem import Problem, Variables


@dataclass(frozen=True)
class F2SA(Method):
    """F2SA. The inner objective must be strongly convex.

    Memory: "follower", the inner variables of the inner problem alone.

    Attributes:
      outer_step: of the hypergradient.
      inner_steps, inner_step: of both copies; that of `inner` goes down F / penalty + f.
      penalty: the bias is proportional to its inverse.
    """

    accepts: ClassVar = frozenset({"project_outer", "project_inner"})

    outer_step: Schedule = 0.1
    inner_steps: int = 1
    inner_step: Schedule = 0.1
    penalty: Schedule = growing_penalty()  # noqa: RUF009, a function and immutable

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        return {"follower": inner}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        penalty, inner_step = value_at(self.penalty, state.step), value_at(self.inner_step, state.step)
        steps_key, key = jax.random.split(key)

        def follow(carry: tuple, key: Key[Array, ""]) -> tuple[tuple, None]:
            inner, follower = carry
            drawn = problem.sampled(key)
            of_outer = jax.grad(drawn.outer, argnums=1)(state.outer, inner)
            of_inner = jax.grad(drawn.inner, argnums=1)
            direction = optax.tree.add_scale(of_inner(state.outer, inner), 1 / penalty, of_outer)
            inner = problem.to_inner(optax.tree.add_scale(inner, -inner_step, direction))
            follower = optax.tree.add_scale(follower, -inner_step, of_inner(state.outer, follower))
            return (inner, problem.to_inner(follower)), None

        keys = jax.random.split(steps_key, self.inner_steps)
        (inner, follower), _ = jax.lax.scan(follow, (state.inner, state.memory["follower"]), keys)
        drawn = problem.sampled(key)

        def lagrangian(outer: Variables) -> Float[Array, ""]:
            return drawn.outer(outer, inner) + penalty * (drawn.inner(outer, inner) - drawn.inner(outer, follower))

        step = value_at(self.outer_step, state.step)
        outer = optax.tree.add_scale(state.outer, -step, jax.grad(lagrangian)(state.outer))
        return problem.to_outer(outer), inner, {"follower": follower}

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        return {"penalty": jnp.asarray(value_at(self.penalty, state.step))}
