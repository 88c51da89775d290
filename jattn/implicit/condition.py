"""What holds at a solution, and what is known of its derivative by the inner variables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jattn.implicit.linear_solve import Structure


@dataclass(frozen=True)
class Condition:
    """F(inner, *outer) = 0.

    Attributes:
      residual: F; of the inner variables' structure and shapes.
      structure: of A = -∂F/∂inner or of ∂F/∂inner, whichever `sign` says.
      sign: of ∂F/∂inner in a matrix of that structure: 1 for the gradient of what is minimised.
      activity: (inner, *outer) -> which inequalities are active, and the smaller of the least multiplier of those and
        the least slack of the others; None where there are none, or to be judged by residuals alone.
    """

    residual: Callable[..., Any]
    structure: Structure = "general"
    sign: int = -1
    activity: Callable[..., tuple[Bool[Array, " inequalities"], Float[Array, ""]]] | None = None


def as_condition(condition: Condition | Callable[..., Any]) -> Condition:
    """A function as a condition of which nothing is known."""
    return condition if isinstance(condition, Condition) else Condition(condition)


def stationary(objective: Callable[..., Float[Array, ""]]) -> Condition:
    """∂ objective/∂inner = 0, for objectives with a positive definite Hessian there."""
    return Condition(jax.grad(objective), "positive definite", sign=1)


def fixed(map: Callable[..., Any]) -> Condition:
    """map(inner, *outer) = inner."""
    return Condition(lambda inner, *outer, **named: jax.tree.map(jnp.subtract, map(inner, *outer, **named), inner))
