"""SOBA and SABA: inner variables, adjoint and outer variables move together, without inner loops (arXiv 2201.13409).

Dagréou, Ablin, Vaiter and Moreau, NeurIPS 2022. All three directions are means over the data, so that any stochastic
gradient method applies to the three at once: SOBA is plain, SABA has SAGA's memory and converges with constant steps.

| paper | here |
| --- | --- |
| x, z | outer, inner |
| v, of the opposite sign | adjoint |
| F, G | `problem.outer`, `problem.inner` |
| γ; ρ | outer_step; inner_step and adjoint_step |
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jattn.bilevel.hypergradient_descent import second_order_products
from jattn.bilevel.method import Method, Schedule, State, value_at
from jattn.bilevel.problem import Blocks, Problem, Variables


class InnerOracles(NamedTuple):
    """What is asked of the inner objective on one batch: its gradient, and second derivatives times the adjoint."""

    gradient: Variables
    cross_product: Variables
    hessian_product: Variables


class OuterOracles(NamedTuple):
    """What is asked of the outer objective on one batch: both of its gradients."""

    of_outer: Variables
    of_inner: Variables


@dataclass(frozen=True)
class SOBA(Method):
    """SOBA. On stochastic problems the steps must fall for convergence. The inner objective must be strongly convex.

    Memory: "adjoint".

    Attributes:
      outer_step, inner_step, adjoint_step: numbers or schedules.
    """

    accepts: ClassVar = frozenset({"project_outer"})

    outer_step: Schedule = 0.1
    inner_step: Schedule = 0.1
    adjoint_step: Schedule = 0.1

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        return {"adjoint": optax.tree.zeros_like(inner)}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        drawn = problem.sampled(key)
        of_inner, of_outer = _ask_inner(drawn, state), _ask_outer(drawn, state)
        return self.move(problem, state, of_inner, of_outer)

    def move(
        self, problem: Problem, state: State, of_inner: InnerOracles, of_outer: OuterOracles
    ) -> tuple[Variables, Variables, dict]:
        """All three variables after a step along their directions."""

        def stepped(variables: Variables, step: Schedule, direction: Variables) -> Variables:
            return optax.tree.add_scale(variables, -value_at(step, state.step), direction)

        of_adjoint = optax.tree.sub(of_inner.hessian_product, of_outer.of_inner)
        hypergradient = optax.tree.sub(of_outer.of_outer, of_inner.cross_product)
        outer = problem.to_outer(stepped(state.outer, self.outer_step, hypergradient))
        inner = stepped(state.inner, self.inner_step, of_inner.gradient)
        return outer, inner, {"adjoint": stepped(state.memory["adjoint"], self.adjoint_step, of_adjoint)}


@dataclass(frozen=True)
class SABA(SOBA):
    """SABA. Remembers the five oracles of every block, which takes blocks times the variables of memory.

    Memory: "adjoint", and for both objectives what each block last gave and the mean of that: "inner_seen",
    "inner_mean", "outer_seen", "outer_mean".
    """

    def require(self, problem: Problem) -> None:
        _blocks(problem)

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        memory = super().carry(problem, outer, inner, key)
        outer_blocks, inner_blocks = _blocks(problem)
        start = State(jnp.int32(0), key, outer, inner, memory, {})
        inner_seen = jax.lax.map(lambda block: _ask_inner(problem.on(None, block), start), inner_blocks.arrays)
        outer_seen = jax.lax.map(lambda block: _ask_outer(problem.on(block, None), start), outer_blocks.arrays)
        return {
            **memory,
            "inner_seen": inner_seen,
            "inner_mean": jax.tree.map(lambda array: array.mean(0), inner_seen),
            "outer_seen": outer_seen,
            "outer_mean": jax.tree.map(lambda array: array.mean(0), outer_seen),
        }

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        outer_key, inner_key = jax.random.split(key)
        outer_blocks, inner_blocks = _blocks(problem)
        outer_block, inner_block = outer_blocks.draw(outer_key), inner_blocks.draw(inner_key)
        drawn = problem.on(outer_blocks[outer_block], inner_blocks[inner_block])
        of_inner, inner_seen, inner_mean = _less_variance(
            _ask_inner(drawn, state), inner_block, state.memory["inner_seen"], state.memory["inner_mean"]
        )
        of_outer, outer_seen, outer_mean = _less_variance(
            _ask_outer(drawn, state), outer_block, state.memory["outer_seen"], state.memory["outer_mean"]
        )
        outer, inner, memory = self.move(problem, state, of_inner, of_outer)
        seen = {"inner_seen": inner_seen, "inner_mean": inner_mean, "outer_seen": outer_seen, "outer_mean": outer_mean}
        return outer, inner, memory | seen


def _blocks(problem: Problem) -> tuple[Blocks, Blocks]:
    """The blocks of the outer and of the inner objective."""
    outer, inner = problem.outer_batch, problem.inner_batch
    if isinstance(outer, Blocks) and isinstance(inner, Blocks):
        return outer, inner
    raise ValueError(
        "problem.outer_batch and problem.inner_batch must be Blocks, each of which SABA remembers; "
        f"got {type(outer).__name__} and {type(inner).__name__}"
    )


def _ask_inner(problem: Problem, state: State) -> InnerOracles:
    cross, hessian = second_order_products(problem, state.outer, state.inner, state.memory["adjoint"])
    return InnerOracles(jax.grad(problem.inner, argnums=1)(state.outer, state.inner), cross, hessian)


def _ask_outer(problem: Problem, state: State) -> OuterOracles:
    return OuterOracles(*jax.grad(problem.outer, argnums=(0, 1))(state.outer, state.inner))


def _less_variance(new: Any, block: Int[Array, ""], seen: Any, mean: Any) -> tuple[Any, Any, Any]:
    """SAGA (Defazio, Bach and Lacoste-Julien 2014): the estimate, and the memory with this block's answer in it."""
    change = jax.tree.map(lambda new, seen: new - seen[block], new, seen)
    count = jax.tree.leaves(seen)[0].shape[0]
    return (
        optax.tree.add(mean, change),
        jax.tree.map(lambda seen, new: seen.at[block].set(new), seen, new),
        optax.tree.add_scale(mean, 1 / count, change),
    )
