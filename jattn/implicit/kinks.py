"""How near the kinks of an operator are: where its derivative jumps, as that of a projection does at its set's edge."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

Vector = Float[Array, " entries"]
JUMP = 1e-2
"""Of a derivative along a random direction, over its largest entry: smaller ones are curvature and rounding."""
LEAST, GROWTH = 1e-9, 4.0
"""The first margin that is tried, or eight roundings if that is more, and the ratio of each to the last."""


def nearest_kink(
    operator: Callable[[Any], Any], point: Callable[[Any], Any], inner: Any, rate: float
) -> tuple[Bool[Array, " entries"], Float[Array, ""]]:
    """Which entries of operator(point(inner)) are held, and how far inner variables may be off with no kink between.

    Held are entries that do not move with the point: at a bound, out of a support. The margin is a lower bound, by a
    factor of four at most but for chance, of the distance from a kink of each inner variable that is free, and of the
    multiplier of each that is held; the point is where a step of size `rate` down the objective leads. It is moved both
    ways by signs at random, by more and more: what bends alike both ways is curvature, the rest a jump. The margin is
    the largest entry of the point, or 1, at most. Without derivatives.
    """
    inner, restore_inner = ravel_pytree(jax.lax.stop_gradient(inner))
    flat, restore = ravel_pytree(jax.lax.stop_gradient(point(restore_inner(inner))))
    signs = jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype)
    direction = _no_small_entries(jax.random.key(1), flat)

    def slope(flat: Vector) -> Vector:
        """The operator's derivative along the direction."""

        def of_flat(flat: Vector) -> Vector:
            return ravel_pytree(operator(restore(flat)))[0]

        return jax.jvp(of_flat, (flat,), (direction,))[1]

    held = slope(flat) == 0
    move = jnp.where(held, 0, signs)
    _, moved = jax.jvp(lambda inner: ravel_pytree(point(restore_inner(inner)))[0], (inner,), (move,))
    steepening = jnp.sqrt(jnp.mean((move - moved) ** 2))
    reach = signs * (~held + rate + steepening)
    most = jnp.abs(flat).max(initial=1)
    first = jnp.maximum(LEAST, 8 * jnp.finfo(flat.dtype).eps) * most
    # Not at the point itself: on a kink derivatives may be the mean of both sides.
    here = slope(flat + first / 2 * reach)

    def smooth(margin: Float[Array, ""]) -> Bool[Array, ""]:
        above, below = slope(flat + margin * reach), slope(flat - margin * reach)
        largest = jnp.stack([here, above, below])
        return jnp.linalg.norm(above + below - 2 * here) <= JUMP * jnp.abs(largest).max(initial=0)

    clear = jax.lax.while_loop(lambda tried: (tried < most) & smooth(tried), lambda tried: GROWTH * tried, first)
    margin = jnp.where(clear > first, jnp.minimum(clear / GROWTH, most), 0)
    return jax.lax.stop_gradient((held, margin))


def _no_small_entries(key: Array, like: Vector) -> Vector:
    """At random, from 1 to 2 or from -2 to -1: no small factor hides a jump, and no sum of entries is 0 by chance."""
    of_sign, of_size = jax.random.split(key)
    sign = jax.random.rademacher(of_sign, like.shape, like.dtype)
    return sign * jax.random.uniform(of_size, like.shape, like.dtype, 1, 2)
