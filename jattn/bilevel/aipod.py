"""AiPOD: alternating projected descent for inner problems with equality constraints (arXiv 2211.07096).

Xiao, Shen, Yin and Chen, "Alternating Projected SGD for Equality-constrained Bilevel Optimization", AISTATS 2023.
Inner variables stay on {A y + h(x) = 0}, and the implicit gradient is taken in the null space of A:

    ∇F = ∂F/∂x - (∂²f/∂x∂y) v - (∂h/∂x)ᵀ w,  v = P (P (∂²f/∂y²) P)⁺ P ∂F/∂y,  w = A⁺ᵀ (∂F/∂y - (∂²f/∂y²) v)

with P the projection on the null space. These are the multipliers of the inner problem's optimality conditions.

| paper | here |
| --- | --- |
| x, y | outer, inner |
| f, g | `problem.outer`, `problem.inner` |
| A y + h(x) - c | `problem.equality`, affine in the inner variables |
| V₂ V₂ᵀ | P |
| S, β | inner_steps, inner_step |
| T or N, of the Neumann series | adjoint_steps, of conjugate gradients |
| α | outer_optimiser |
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jattn.bilevel.hypergradient_descent import HypergradientDescent, second_order_products
from jattn.bilevel.method import State, value_at
from jattn.bilevel.problem import Problem, Variables


@dataclass(frozen=True)
class AiPOD(HypergradientDescent):
    """AiPOD, with the series for v replaced by conjugate gradients from the last iteration's.

    Equalities must be affine in the inner variables, with a matrix that outer variables do not change and whose rows
    are linearly independent.

    Memory beside that of all: "adjoint", an array of all inner variables; "basis" and "triangle", Q and R of Aᵀ = QR,
    by which projections are as exact as rounding allows: those by AAᵀ square the condition of A, and conjugate
    gradients that leave the null space for it diverge.

    Attributes:
      adjoint_steps: conjugate gradient steps at most.
      tolerance: the residual, relative to the right-hand side, at which they end.
    """

    accepts: ClassVar = frozenset({"equality", "project_outer"})

    adjoint_steps: int = 20
    tolerance: float = 1e-5

    def require(self, problem: Problem) -> None:
        if problem.equality is None:
            raise ValueError("problem.equality must be given: AiPOD is for equality constraints; got None")

    def carry_more(self, problem: Problem, outer: Variables, inner: Variables) -> dict[str, Any]:
        flat, unravel = ravel_pytree(inner)
        matrix = jax.jacrev(lambda flat: problem.equality(outer, unravel(flat)))(flat)  # type: ignore[misc]
        basis, triangle = jnp.linalg.qr(matrix.T)
        return {"adjoint": jnp.zeros_like(flat), "basis": basis, "triangle": triangle}

    def estimate(
        self, problem: Problem, state: State, key: Key[Array, ""]
    ) -> tuple[Variables, Variables, dict[str, Any]]:
        flat, unravel = ravel_pytree(state.inner)
        basis, triangle = state.memory["basis"], state.memory["triangle"]

        def rows(outer: Variables, flat: Float[Array, " size"]) -> Float[Array, " rows"]:
            return problem.equality(outer, unravel(flat))  # type: ignore[misc]

        def to_null_space(vector: Float[Array, " size"]) -> Float[Array, " size"]:
            return vector - basis @ (basis.T @ vector)

        def to_set(vector: Float[Array, " size"]) -> Float[Array, " size"]:
            excess = rows(state.outer, vector)
            return vector - basis @ jax.scipy.linalg.solve_triangular(triangle, excess, trans="T")

        step = value_at(self.inner_step, state.step)

        def descend(flat: Float[Array, " size"], key: Key[Array, ""]) -> tuple[Float[Array, " size"], None]:
            gradient = jax.grad(problem.sampled(key).inner, argnums=1)(state.outer, unravel(flat))
            return to_set(flat - step * ravel_pytree(gradient)[0]), None

        steps_key, key = jax.random.split(key)
        flat, _ = jax.lax.scan(descend, to_set(flat), jax.random.split(steps_key, self.inner_steps))
        inner, drawn = unravel(flat), problem.sampled(key)

        def products(vector: Float[Array, " size"]) -> tuple[Variables, Float[Array, " size"]]:
            cross, hessian = second_order_products(drawn, state.outer, inner, unravel(vector))
            return cross, ravel_pytree(hessian)[0]

        of_outer, of_inner = jax.grad(drawn.outer, argnums=(0, 1))(state.outer, inner)
        right = ravel_pytree(of_inner)[0]
        adjoint, _ = jax.scipy.sparse.linalg.cg(
            lambda vector: to_null_space(products(vector)[1]),
            to_null_space(right),
            x0=state.memory["adjoint"],
            tol=self.tolerance,
            maxiter=self.adjoint_steps,
        )
        cross, hessian = products(adjoint)
        multipliers = jax.scipy.linalg.solve_triangular(triangle, basis.T @ (right - hessian))
        _, pull_back = jax.vjp(lambda outer: rows(outer, flat), state.outer)
        gradient = optax.tree.sub(optax.tree.sub(of_outer, cross), pull_back(multipliers)[0])
        return gradient, inner, {"adjoint": adjoint, "basis": basis, "triangle": triangle}
