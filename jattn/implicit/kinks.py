"""How near the kinks of an operator are: where its derivative jumps, as that of a projection does at its set's edge."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jattn.implicit.directions import random_signs, random_sizes

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
    # Entries are from 1 to 2: no small factor hides a jump, and no sum of them is 0 by chance, as of signs.
    direction = random_signs(flat) * random_sizes(flat)

    def slope(flat: Vector) -> Vector:
        """The operator's derivative along the direction."""

        def of_flat(flat: Vector) -> Vector:
            return ravel_pytree(operator(restore(flat)))[0]

        return jax.jvp(of_flat, (flat,), (direction,))[1]

    held = slope(flat) == 0
    move = jnp.where(held, 0, random_signs(flat, 1))
    _, moved = jax.jvp(lambda inner: ravel_pytree(point(restore_inner(inner)))[0], (inner,), (move,))
    reach = ~held + rate + jnp.sqrt(jnp.mean((move - moved) ** 2))
    most = jnp.abs(flat).max(initial=1)
    rounding = 4 * jnp.finfo(flat.dtype).eps * most
    first = jnp.maximum(LEAST * most, 2 * rounding)

    def away(margin: Array, stream: Array) -> Vector:
        return random_signs(flat, stream) * jnp.maximum(margin * reach, rounding)

    def beside(margin: Array, stream: Array) -> tuple[Vector, Vector]:
        by = away(margin, stream)
        return slope(flat + by), slope(flat - by)

    # Not at the point itself: on a kink derivatives may be the mean of both sides.
    here, other = beside(first / 2, jnp.uint32(1))
    alike = _small(here - other, here, other)

    def smooth(tried: tuple[Array, Array]) -> Bool[Array, ""]:
        """Whether nothing jumps; other signs each time, for some may lead along an edge."""
        above, below = beside(*tried)
        return (tried[0] < most) & alike & _small(above + below - 2 * here, here, above, below)

    def further(tried: tuple[Array, Array]) -> tuple[Array, Array]:
        return GROWTH * tried[0], tried[1] + 1

    clear, _ = jax.lax.while_loop(smooth, further, (first, jnp.uint32(1)))
    margin = jnp.where(clear > first, jnp.minimum(clear / GROWTH, most), 0)
    return jax.lax.stop_gradient((held, margin))


def _small(change: Vector, *slopes: Vector) -> Bool[Array, ""]:
    """Of a derivative: no jump."""
    return jnp.linalg.norm(change) <= JUMP * jnp.abs(jnp.stack(slopes)).max(initial=0)
