"""Derivatives of a function against central differences of it, in double precision."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def assert_derivatives(
    function: Callable[..., Any], arguments: tuple[Any, ...], *, step: float = 1e-5, tolerance: float = 1e-6
) -> None:
    """First and second derivatives along a direction in all arguments: forward, reverse, compiled and batched."""
    numbers = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: jnp.asarray(numbers.normal(size=jnp.shape(leaf))), arguments)
    weights = jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape), function(*arguments))
    start = jnp.zeros(())

    def along(distance: Any, function: Any = function) -> Any:
        return function(*jax.tree.map(lambda leaf, by: leaf + distance * by, arguments, direction))

    def curved(*arguments: Any) -> Any:
        """A number whose gradient changes even where `function` is piecewise linear."""
        return sum(jax.tree.leaves(jax.tree.map(lambda w, y: jnp.vdot(w, jnp.sin(y)), weights, function(*arguments))))

    def slope(distance: Any) -> Any:
        gradient = along(distance, jax.grad(curved, tuple(range(len(arguments)))))
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))

    def difference(function: Any, step: float) -> Any:
        return jax.tree.map(lambda up, down: (up - down) / (2 * step), function(step), function(-step))

    def close(found: Any, want: Any, tolerance: float) -> None:
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * (1 + np.abs(other).max()))

    @jax.jit
    def derivatives() -> Any:
        two = jnp.array([0.0, step])
        second = difference(slope, step)
        return [
            (jax.jvp(along, (start,), (start + 1,))[1], difference(along, step), tolerance),
            (slope(start), difference(lambda distance: along(distance, curved), step), tolerance),
            (jax.jvp(slope, (start,), (start + 1,))[1], second, 10 * tolerance),
            (jax.grad(slope)(start), second, 10 * tolerance),
            (jax.vmap(slope)(two), jnp.stack([slope(at) for at in two]), 1e-9),
        ]

    for found, want, bar in derivatives():
        close(found, want, bar)
