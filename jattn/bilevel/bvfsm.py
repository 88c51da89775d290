"""BVFSM: an interior-point method on the regularised inner value function (arXiv 2110.04974).

Liu, Liu, Zeng and Zhang, TPAMI 2023 (first as arXiv 2106.07991, ICML 2021). Inner variables stay strictly inside of
{f(x, y) < value}, where the value is the inner minimum plus a margin that shrinks, by a logarithmic barrier.

| papers | here |
| --- | --- |
| x, y; z | outer, inner; follower |
| F, f | `problem.outer`, `problem.inner` |
| μ₁ (of ½‖z‖²), μ₂ | regularisation, margin |
| τ (of -ln(value - f)) | barrier |
| θ (of ½‖y‖² in the second inner problem) | regularisation too |
| T_z, T_y, and their step sizes | inner_steps, inner_step |
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

HALVINGS = 30


@dataclass(frozen=True)
class BVFSM(Method):
    """BVFSM with a barrier. Steps of inner variables are halved until they stay inside.

    Directions in the inner variables are divided by the barrier's weight barrier / (value - f), which may be large,
    so that one step size suits all.

    Memory: "follower", the inner variables of the inner problem alone.

    Attributes:
      outer_step: of the hypergradient.
      inner_steps, inner_step: of both inner problems in each iteration.
      penalty: by which margin and regularisation are divided, as it grows.
      margin, regularisation, barrier: at a penalty of 1. The bias is of the order of margin / (penalty barrier).
    """

    accepts: ClassVar = frozenset({"project_outer"})

    outer_step: Schedule = 0.1
    inner_steps: int = 10
    inner_step: Schedule = 0.1
    penalty: Schedule = growing_penalty()  # noqa: RUF009, a function and immutable
    margin: float | Float[Array, ""] = 1.0
    regularisation: float | Float[Array, ""] = 1e-3
    barrier: float | Float[Array, ""] = 1.0

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        return {"follower": inner}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        drawn, penalty = problem.sampled(key), value_at(self.penalty, state.step)
        step, regularisation, margin = (
            value_at(self.inner_step, state.step),
            self.regularisation / penalty,
            self.margin / penalty,
        )

        def value(outer: Variables, follower: Variables) -> Float[Array, ""]:
            squared = optax.tree.norm(follower, squared=True)
            return drawn.inner(outer, follower) + regularisation / 2 * squared + margin

        def follow(_: Any, follower: Variables) -> Variables:
            return optax.tree.add_scale(follower, -step, jax.grad(value, argnums=1)(state.outer, follower))

        follower = jax.lax.fori_loop(0, self.inner_steps, follow, state.memory["follower"])
        bound = value(state.outer, follower)

        def room(inner: Variables) -> Float[Array, ""]:
            return bound - drawn.inner(state.outer, inner)

        def stay_inside(_: Any, inner: Variables) -> Variables:
            of_outer, of_inner = (
                jax.grad(objective, argnums=1)(state.outer, inner) for objective in (drawn.outer, drawn.inner)
            )
            of_outer = optax.tree.add_scale(of_outer, regularisation, inner)
            direction = optax.tree.add_scale(of_inner, room(inner) / self.barrier, of_outer)

            def moved(size: Array) -> Variables:
                return optax.tree.add_scale(inner, -size, direction)

            def outside(carry: tuple) -> Array:
                size, count = carry
                return (room(moved(size)) <= room(inner) / 10) & (count < HALVINGS)

            start = (jnp.asarray(step, jnp.result_type(bound)), 0)
            size, count = jax.lax.while_loop(outside, lambda carry: (carry[0] / 2, carry[1] + 1), start)
            return jax.tree.map(lambda new, old: jnp.where(count < HALVINGS, new, old), moved(size), inner)

        # The follower is always inside; the inner variables may have come to lie outside as the margin shrank.
        inside = room(state.inner) > 0
        start = jax.tree.map(lambda inner, follower: jnp.where(inside, inner, follower), state.inner, follower)
        inner = jax.lax.fori_loop(0, self.inner_steps, stay_inside, start)
        weight = self.barrier / room(inner)

        def penalised(outer: Variables) -> Float[Array, ""]:
            return drawn.outer(outer, inner) + weight * (drawn.inner(outer, inner) - drawn.inner(outer, follower))

        outer_step = value_at(self.outer_step, state.step)
        outer = optax.tree.add_scale(state.outer, -outer_step, jax.grad(penalised)(state.outer))
        return problem.to_outer(outer), inner, {"follower": follower}

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        return {"penalty": jnp.asarray(value_at(self.penalty, state.step))}
