"""Differentiation of the inner solver's steps: iterative (ITD), truncated (K-RMD) and one-step.

Franceschi et al., ICML 2017 (arXiv 1703.01785); Shaban et al., AISTATS 2019 (arXiv 1810.10667), who differentiate
the last K steps only; Bolte, Pauwels and Vaiter, NeurIPS 2023 (arXiv 2305.13768), who differentiate the last.

| papers | here |
| --- | --- |
| x or λ, y or w | outer, inner |
| T, K | inner_steps, differentiated |
| η | inner_step |
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, Key

from jattn.bilevel.hypergradient_descent import HypergradientDescent, descend
from jattn.bilevel.method import State, value_at
from jattn.bilevel.problem import Problem, Variables


@dataclass(frozen=True)
class Unrolled(HypergradientDescent):
    """Reverse-mode differentiation through the inner steps of each iteration, or through the last of them.

    What is left out is a bias: the inverse Hessian is replaced by `differentiated` terms of its Neumann series.

    Attributes:
      differentiated: the steps that are differentiated: all if None, 1 for one-step differentiation.
    """

    accepts: ClassVar = frozenset({"project_outer", "project_inner"})

    differentiated: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.differentiated is not None and self.differentiated > self.inner_steps:
            raise ValueError(
                f"differentiated must be at most inner_steps = {self.inner_steps}; got {self.differentiated}"
            )

    def estimate(
        self, problem: Problem, state: State, key: Key[Array, ""]
    ) -> tuple[Variables, Variables, dict[str, Any]]:
        last = self.inner_steps if self.differentiated is None else self.differentiated
        step = value_at(self.inner_step, state.step)
        before_key, last_key, key = jax.random.split(key, 3)
        before = descend(problem, state.outer, state.inner, before_key, step, self.inner_steps - last)

        def through(outer: Variables) -> tuple[Float[Array, ""], Variables]:
            inner = descend(problem, outer, before, last_key, step, last)
            return problem.sampled(key).outer(outer, inner), inner

        gradient, inner = jax.grad(through, has_aux=True)(state.outer)
        return gradient, inner, {}
