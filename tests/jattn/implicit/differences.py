"""Derivatives of a function against central differences of it, in double precision."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def assert_derivatives(
    function: Callable[..., Any], arguments: tuple[Any, ...], *, step: float = 1e-5, tolerance: float = 1e-6
) -> None:
    """First and second derivatives along a direction in all arguments: forward, reverse, compiled and batched.

    As few programs as will do, for compiling takes nearly all the time: values and slopes come with their derivatives.
    """
    numbers = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: jnp.asarray(numbers.normal(size=jnp.shape(leaf))), arguments)
    plain = jax.jit(function)(*arguments)
    weights = jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape), plain)
    start = jnp.zeros(())

    def along(distance: Any) -> Any:
        return function(*moved(distance))

    def moved(distance: Any) -> Any:
        return jax.tree.map(lambda leaf, by: leaf + distance * by, arguments, direction)

    def curve(values: Any) -> Any:
        """A number whose gradient changes even where `function` is piecewise linear."""
        return sum(jax.tree.leaves(jax.tree.map(lambda w, y: jnp.vdot(w, jnp.sin(y)), weights, values)))

    def slope(distance: Any) -> Any:
        gradient = jax.grad(lambda arguments: curve(function(*arguments)))(moved(distance))
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))

    def difference(batch: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf[1] - leaf[2]) / (2 * step), batch)

    @jax.jit
    def derivatives() -> Any:
        def with_change(of: Callable[[Any], Any]) -> Any:
            return jax.vmap(lambda place: jax.jvp(of, (place,), (start + 1,)))(jnp.array([0.0, step, -step]))

        (values, changes), (slopes, bends) = with_change(along), with_change(slope)
        first = jax.tree.map(lambda leaf: leaf[0], (values, changes))
        return [
            (first[0], plain, tolerance),
            (first[1], difference(values), tolerance),
            (slopes[0], difference(jax.vmap(curve)(values)), tolerance),
            (bends[0], difference(slopes), 10 * tolerance),
            (jax.grad(slope)(start), difference(slopes), 10 * tolerance),
        ]

    for found, want, bar in derivatives():
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=bar, atol=bar * (1 + np.abs(other).max()))
