"""What methods share that estimate the hypergradient: inner descent, an optax update, second-order products."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jattn.bilevel.method import Method, Schedule, State
from jattn.bilevel.problem import Problem, Variables


@dataclass(frozen=True)
class HypergradientDescent(Method):
    """A method that moves outer variables by an estimate of the total derivative of their objective.

    Memory: "optimiser", "hypergradient" (the last estimate), and what the method adds.

    Attributes:
      inner_steps: gradient steps on the inner variables in each iteration, from where they are.
      inner_step: the size of these steps.
      outer_optimiser: optax's, for outer variables.
    """

    accepts: ClassVar = frozenset({"project_outer"})

    inner_steps: int = 10
    inner_step: Schedule = 0.1
    outer_optimiser: optax.GradientTransformation = optax.sgd(0.1)  # noqa: RUF009, a pair of functions

    def estimate(
        self, problem: Problem, state: State, key: Key[Array, ""]
    ) -> tuple[Variables, Variables, dict[str, Any]]:
        """The hypergradient, the inner variables after their steps, and what else is carried."""
        raise NotImplementedError

    def carry_more(self, problem: Problem, outer: Variables, inner: Variables) -> dict[str, Any]:
        """What is carried beside the optimiser, to begin with."""
        return {}

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        return {
            "optimiser": self.outer_optimiser.init(outer),
            "hypergradient": optax.tree.zeros_like(outer),
            **self.carry_more(problem, outer, inner),
        }

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        gradient, inner, more = self.estimate(problem, state, key)
        updates, optimiser = self.outer_optimiser.update(gradient, state.memory["optimiser"], state.outer)
        outer = problem.to_outer(optax.apply_updates(state.outer, updates))
        return outer, inner, {"optimiser": optimiser, "hypergradient": gradient, **more}

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        return {"hypergradient_norm": jnp.asarray(optax.tree.norm(state.memory["hypergradient"]))}


def descend(
    problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""], step: Any, steps: int
) -> Variables:
    """Inner variables after projected gradient steps, each on a batch of its own. Differentiable."""

    def one(inner: Variables, key: Key[Array, ""]) -> tuple[Variables, None]:
        gradient = jax.grad(problem.sampled(key).inner, argnums=1)(outer, inner)
        return problem.to_inner(optax.tree.add_scale(inner, -step, gradient)), None

    return jax.lax.scan(one, inner, jax.random.split(key, steps))[0]


def second_order_products(
    problem: Problem, outer: Variables, inner: Variables, adjoint: Variables
) -> tuple[Variables, Variables]:
    """The second derivatives of the inner objective, outer by inner and inner by inner, times the adjoint."""
    _, pull_back = jax.vjp(jax.grad(problem.inner, argnums=1), outer, inner)
    return pull_back(adjoint)


def implicit_gradient(problem: Problem, outer: Variables, inner: Variables, adjoint: Variables) -> Variables:
    """∂F/∂x - (∂²f/∂x∂y) v, the hypergradient when v solves (∂²f/∂y²) v = ∂F/∂y."""
    cross, _ = second_order_products(problem, outer, inner, adjoint)
    return optax.tree.sub(jax.grad(problem.outer)(outer, inner), cross)
