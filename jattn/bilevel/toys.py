"""A problem whose answer is known, to try methods on."""

import jax.numpy as jnp
from jaxtyping import Array

from jattn.bilevel.problem import Problem

CONVEX_TOY_ANSWER = -0.3
"""Every outer variable of the solution of `convex_toy`; its inner ones are 0.7 and -0.4."""


def convex_toy(size: int) -> Problem:
    """F = ½‖x - y2‖² + ½‖y1 - 1‖², f = ½‖y1‖² - xᵀy1 + 1ᵀy2, and all variables sum to 0; y is (2, size).

    The second toy of Yao et al. (ICLR 2024, arXiv 2401.16164): inner solutions are many, one equality couples all
    variables.
    """

    def outer(x: Array, y: Array) -> Array:
        return 0.5 * jnp.sum((x - y[1]) ** 2) + 0.5 * jnp.sum((y[0] - 1) ** 2)

    def inner(x: Array, y: Array) -> Array:
        return 0.5 * jnp.sum(y[0] ** 2) - x @ y[0] + y[1].sum()

    def project(x: Array, y: Array) -> tuple[Array, Array]:
        excess = (x.sum() + y.sum()) / (3 * size)
        return x - excess, y - excess

    return Problem(outer, inner, equality=lambda x, y: (x.sum() + y.sum())[None], project_joint=project)
