"""Penalties: how they grow, and what two of them say about an infinite one."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


def growing_penalty(scale: Float[Array, ""] | float = 1.0, power: float = 0.3) -> optax.Schedule:
    """scale (k + 1)^power in iteration k, as LV-HBA and BiC-GAFFA raise it; their theory asks for powers below ½."""

    def penalty(step: jax.typing.ArrayLike) -> Array:
        return scale * (jnp.asarray(step, jnp.result_type(float)) + 1) ** power

    return penalty


def extrapolate(at_penalty: PyTree, at_twice_the_penalty: PyTree) -> PyTree:
    """Solutions under penalty c and 2c to one whose error is quadratic in 1/c: 2 x(2c) - x(c).

    Richardson's extrapolation: with a constant penalty all penalty methods end at x(c) = x + bias/c + O(1/c²).
    """
    return jax.tree.map(lambda once, twice: 2 * twice - once, at_penalty, at_twice_the_penalty)
