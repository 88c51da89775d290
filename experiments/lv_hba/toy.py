"""The paper's second toy: inner solutions are many, one equality couples all variables, and the answer is known.

| paper | here |
| --- | --- |
| x, (y1, y2) | outer, inner |
| α, β, η | `outer_step`, `center_step`, `saddle_step` of the method |
| γ, r | `Proximity` |
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jattn.bilevel import LVHBA, Problem, Proximity, growing_penalty, solve

ANSWER = -0.3
"""Every outer variable of the solution; its inner ones are 0.7 and -0.4."""
PENALTY = growing_penalty(1.0, 0.45)
"""Of iteration k, (k + 1)^0.45."""


def convex_toy(size: int) -> Problem:
    """F = ½‖x - y2‖² + ½‖y1 - 1‖², f = ½‖y1‖² - xᵀy1 + 1ᵀy2, and all variables sum to 0."""

    def outer(x: Array, y: Array) -> Array:
        return 0.5 * jnp.sum((x - y[1]) ** 2) + 0.5 * jnp.sum((y[0] - 1) ** 2)

    def inner(x: Array, y: Array) -> Array:
        return 0.5 * jnp.sum(y[0] ** 2) - x @ y[0] + y[1].sum()

    def project(x: Array, y: Array) -> tuple[Array, Array]:
        excess = (x.sum() + y.sum()) / (3 * size)
        return x - excess, y - excess

    return Problem(outer, inner, equality=lambda x, y: (x.sum() + y.sum())[None], project_joint=project)


def errors(
    size: int, steps: int, record_every: int, penalty: float | None = None
) -> tuple[Float[np.ndarray, " records"], Float[np.ndarray, " size"]]:
    """The relative error of the outer variables by record, and the last of them.

    Args:
      penalty: constant; None: (k + 1)^0.45.
    """
    schedule = PENALTY if penalty is None else penalty
    # The multiplier is -1, and -√(3 size) of the row divided by its norm, which the radius must exceed.
    method = LVHBA(0.1, 1.0, 0.2, schedule, Proximity(2.0, 2.0, max(100.0, 2 * (3 * size) ** 0.5)))
    start = jnp.ones(size), jnp.ones((2, size))
    run = jax.jit(
        lambda x, y: solve(convex_toy(size), method, x, y, steps=steps, record_every=record_every).records.outer
    )
    found = np.asarray(run(*start), np.float64)
    return np.linalg.norm(found - ANSWER, axis=1) / (abs(ANSWER) * size**0.5), found[-1]
