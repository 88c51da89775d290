"""Problems with known answers."""

import jax
import jax.numpy as jnp

from jattn.bilevel import LVHBA, Problem, Proximity, growing_penalty

ANSWER = -0.3
"""Every outer variable of the toy's solution; its inner ones are 0.7 and -0.4."""


def convex_toy(size: int, factor: float = 1.0) -> Problem:
    """The paper's second: inner solutions are many, and one equality couples all variables, here times a factor."""

    def outer(x: jax.Array, y: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((x - y[1]) ** 2) + 0.5 * jnp.sum((y[0] - 1) ** 2)

    def inner(x: jax.Array, y: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(y[0] ** 2) - x @ y[0] + y[1].sum()

    def project(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        excess = (x.sum() + y.sum()) / (3 * size)
        return x - excess, y - excess

    return Problem(outer, inner, equality=lambda x, y: factor * (x.sum() + y.sum())[None], project_joint=project)


def toy_method(**changed) -> LVHBA:
    settings = {
        "outer_step": 0.1,
        "center_step": 1.0,
        "saddle_step": 0.2,
        "penalty": growing_penalty(1.0, 0.45),
        "proximity": Proximity(2.0, 2.0, 100.0),
    }
    return LVHBA(**(settings | changed))


def toy_start(size: int) -> tuple[jax.Array, jax.Array]:
    return jnp.ones(size), jnp.ones((2, size))


def toy_error(outer: jax.Array) -> jax.Array:
    """The relative error of the toy's outer variables, by the last axis."""
    return jnp.linalg.norm(outer - ANSWER, axis=-1) / (abs(ANSWER) * outer.shape[-1] ** 0.5)
