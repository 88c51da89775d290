"""Approximate implicit differentiation (AID): by conjugate gradients, by a Neumann series, and stocBiO.

Pedregosa, ICML 2016 (arXiv 1602.02355); Lorraine, Vicol and Duvenaud, AISTATS 2020 (arXiv 1911.02590); Ji, Yang and
Liang, ICML 2021 (arXiv 2010.07962), whose stocBiO draws a batch for every term of the series.

| papers | here |
| --- | --- |
| x or λ, y or w | outer, inner |
| f or F, g or f | `problem.outer`, `problem.inner` |
| v, with (∂²g/∂y²) v = ∂f/∂y | adjoint |
| D or T, N or Q | inner_steps, adjoint_steps |
| α or η | inner_step, neumann_step |
"""

from dataclasses import dataclass
from typing import Any

import jax
import optax
from jaxtyping import Array, Key

from jattn.bilevel.hypergradient_descent import HypergradientDescent, descend, implicit_gradient, second_order_products
from jattn.bilevel.method import Schedule, State, value_at
from jattn.bilevel.problem import Problem, Variables
from jattn.implicit import ConjugateGradient, solve_linear


@dataclass(frozen=True)
class ConjugateGradientAID(HypergradientDescent):
    """The adjoint by conjugate gradients, from the last iteration's. The inner objective must be strongly convex.

    Memory beside that of all: "adjoint".

    Attributes:
      adjoint_steps: conjugate gradient steps at most.
      tolerance: the residual, relative to the right-hand side, at which they end.
    """

    adjoint_steps: int = 10
    tolerance: float = 1e-5

    def carry_more(self, problem: Problem, outer: Variables, inner: Variables) -> dict[str, Any]:
        return {"adjoint": optax.tree.zeros_like(inner)}

    def estimate(
        self, problem: Problem, state: State, key: Key[Array, ""]
    ) -> tuple[Variables, Variables, dict[str, Any]]:
        inner_key, key = jax.random.split(key)
        step = value_at(self.inner_step, state.step)
        inner = descend(problem, state.outer, state.inner, inner_key, step, self.inner_steps)
        drawn = problem.sampled(key)

        def hessian(vector: Variables) -> Variables:
            return second_order_products(drawn, state.outer, inner, vector)[1]

        right = jax.grad(drawn.outer, argnums=1)(state.outer, inner)
        adjoint, _ = solve_linear(
            hessian,
            right,
            structure="positive definite",
            solver=ConjugateGradient(self.tolerance, self.adjoint_steps),
            start=state.memory["adjoint"],
        )
        return implicit_gradient(drawn, state.outer, inner, adjoint), inner, {"adjoint": adjoint}


@dataclass(frozen=True)
class NeumannAID(HypergradientDescent):
    """The adjoint by the first terms of the Neumann series η Σ (1 - ηH)ⁱ ∂F/∂y, all on one batch.

    Attributes:
      adjoint_steps: terms after the first.
      neumann_step: η, below 2 divided by the largest curvature of the inner objective.
    """

    adjoint_steps: int = 10
    neumann_step: Schedule = 0.1

    def estimate(
        self, problem: Problem, state: State, key: Key[Array, ""]
    ) -> tuple[Variables, Variables, dict[str, Any]]:
        inner_key, key, terms_key = jax.random.split(key, 3)
        step, neumann_step = value_at(self.inner_step, state.step), value_at(self.neumann_step, state.step)
        inner = descend(problem, state.outer, state.inner, inner_key, step, self.inner_steps)
        drawn = problem.sampled(key)

        def add_term(carry: tuple, key: Key[Array, ""]) -> tuple[tuple, None]:
            total, term = carry
            _, curved = second_order_products(self.sample_term(problem, drawn, key), state.outer, inner, term)
            term = optax.tree.add_scale(term, -neumann_step, curved)
            return (optax.tree.add(total, term), term), None

        right = jax.grad(drawn.outer, argnums=1)(state.outer, inner)
        (total, _), _ = jax.lax.scan(add_term, (right, right), jax.random.split(terms_key, self.adjoint_steps))
        return implicit_gradient(drawn, state.outer, inner, optax.tree.scale(neumann_step, total)), inner, {}

    def sample_term(self, problem: Problem, drawn: Problem, key: Key[Array, ""]) -> Problem:
        """The problem on whose batch a term of the series is computed."""
        return drawn


@dataclass(frozen=True)
class StocBiO(NeumannAID):
    """`NeumannAID` with a batch of its own for every term of the series."""

    def sample_term(self, problem: Problem, drawn: Problem, key: Key[Array, ""]) -> Problem:
        return problem.sampled(key)
