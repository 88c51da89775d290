"""Proximal operators: argmin over y of ½‖y - x‖² + g(y), with derivatives of any order where they exist.

| g(y) | whose function | why |
|---|---|---|
| l1 ‖y‖₁, also with y >= 0 | `jaxopt.prox.prox_lasso`, `prox_non_negative_lasso` | right |
| l1 (‖y‖₁ + l2/2 ‖y‖²) | `jaxopt.prox.prox_elastic_net` | right for one array; trees need Python floats |
| l2/2 ‖y‖², also with y >= 0 | here | jaxopt's docstrings promise l2 ‖y‖², and it computes half of that |
| weight ‖y‖₂ (l2 norm, group lasso) | here | jaxopt's has a gradient of nan at 0 |
| weight ‖y‖₂ with y >= 0, weight ‖y‖∞ | here | jaxopt has none |
| -weight Σ log y | here | jaxopt has none |
| 0 on a set | a projection | see `jattn.implicit.projections` |

A step size multiplies the weight. Groups are rows under `jax.vmap`. Parikh and Boyd, "Proximal algorithms", 2014.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jattn.implicit.projections import l1_ball


def ridge(x: Float[Array, "*shape"], l2: Float[Array, "#*shape"] | float) -> Float[Array, "*shape"]:
    """Of l2/2 ‖y‖²: x / (1 + l2)."""
    return x / (1 + l2)


def non_negative_ridge(x: Float[Array, "*shape"], l2: Float[Array, "#*shape"] | float) -> Float[Array, "*shape"]:
    """Of l2/2 ‖y‖² with y >= 0."""
    return jax.nn.relu(x) / (1 + l2)


def l2_norm(x: Float[Array, "*shape"], weight: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    """Of weight ‖y‖₂ over all entries: x made shorter by the weight, and 0 where it is no longer than that."""
    squares = (x**2).sum()
    kept = squares > weight**2
    length = jnp.sqrt(jnp.where(kept, squares, 1))
    return jnp.where(kept, x * (1 - weight / length), 0)


def non_negative_l2_norm(x: Float[Array, "*shape"], weight: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    """Of weight ‖y‖₂ with y >= 0."""
    return l2_norm(jax.nn.relu(x), weight)


def max_norm(x: Float[Array, " n"], weight: Float[Array, ""] | float) -> Float[Array, " n"]:
    """Of weight ‖y‖∞: what the projection onto the l1 ball of that radius leaves, by Moreau's decomposition."""
    return x - l1_ball(x, weight)


def negative_log(x: Float[Array, "*shape"], weight: Float[Array, "#*shape"] | float) -> Float[Array, "*shape"]:
    """Of -weight Σ log y: the positive root of y² - xy = weight, which is positive."""
    root = jnp.sqrt(x**2 + 4 * weight)
    # Of the two forms of the root, the one that adds.
    return jnp.where(x > 0, (x + root) / 2, 2 * weight / (root - jnp.minimum(x, 0)))
