"""Iterations of LV-HBA on the CPU, against the same iterations written out in NumPy.

Yao et al.'s second toy, float32, one core, CPU time. NumPy has the gradients by hand and nothing else: no problem to be
told, no batches, no records. Both must come to the same variables.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jattn.bench.bound import Bound, logged, medians
from jattn.bench.cpu import mean_cpu_seconds, pin_to_one_core, timed
from jattn.bench.interleave import interleave
from jattn.bilevel import LVHBA, Proximity, growing_penalty, solve
from jattn.bilevel.toys import convex_toy

SIZES = (100, 300, 1000, 10_000)
ITERATIONS = 1000
ROUNDS = 9
OUTER_STEP, CENTER_STEP, SADDLE_STEP, EXPONENT, PROXIMITY = 0.1, 1.0, 0.2, 0.45, 2.0
MILLISECONDS = {100: 5.0}
"""By size, the bar of a thousand iterations."""
NO_SLOWER = Bound(1.0)
Variables = tuple[Float[np.ndarray, " size"], Float[np.ndarray, "2 size"]]


def measure_bilevel() -> list[dict[str, Any]]:
    """A row for each size, and one for each bar of milliseconds.

    Raises:
      AssertionError: the two differ in where they end.
    """
    pin_to_one_core()
    return logged(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    for size in SIZES:
        ours, theirs = of_library(size), lambda size=size: by_hand(size)
        start = jnp.ones(size), jnp.ones((2, size))
        for found, expected in zip(jax.jit(ours)(*start), theirs(), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-3)
        seconds = interleave({"jattn": timed(ours, start), "NumPy": partial(mean_cpu_seconds, theirs)}, ROUNDS)
        what = f"{ITERATIONS} iterations of LV-HBA, {size} outer variables"
        yield NO_SLOWER.row(what, "NumPy", seconds["jattn"] / seconds["NumPy"], medians(seconds))
        if size in MILLISECONDS:
            yield Bound(MILLISECONDS[size]).row(what, "milliseconds", 1e3 * seconds["jattn"], medians(seconds))


def of_library(size: int) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(outer, inner) to those after the iterations."""
    proximity = Proximity(PROXIMITY, PROXIMITY, _radius(size))
    method = LVHBA(OUTER_STEP, CENTER_STEP, SADDLE_STEP, growing_penalty(1.0, EXPONENT), proximity)

    def run(outer: Array, inner: Array) -> tuple[Array, Array]:
        state = solve(convex_toy(size), method, outer, inner, steps=ITERATIONS, record_every=ITERATIONS).state
        return state.outer, state.inner

    return run


def by_hand(size: int) -> Variables:
    """The same from ones: the multiplier is that of the row divided by its norm, √(3 size)."""
    norm, radius = np.float32((3 * size) ** 0.5), _radius(size)
    x, y, near = np.ones(size, np.float32), np.ones((2, size), np.float32), np.ones((2, size), np.float32)
    multiplier = center = np.float32(0)
    slope_y = np.empty_like(y)
    for step in range(ITERATIONS):
        penalty = np.float32((step + 1) ** EXPONENT)
        # The saddle point's step, at the old pair.
        slope_y[0], slope_y[1] = near[0] - x, 1
        of_near = slope_y + multiplier / norm + (near - y) / PROXIMITY
        of_multiplier = -(x.sum() + near.sum()) / norm + (multiplier - center) / PROXIMITY
        near = near - SADDLE_STEP * of_near
        multiplier = np.clip(multiplier - SADDLE_STEP * of_multiplier, -radius, radius)
        # Then that of the variables.
        of_x = (x - y[1]) / penalty - y[0] + near[0] - multiplier / norm
        slope_y[0], slope_y[1] = (y[0] - 1) / penalty + y[0] - x, (y[1] - x) / penalty + 1
        of_y = slope_y - (y - near) / PROXIMITY
        of_center = -(multiplier - center) / PROXIMITY
        x, y = x - OUTER_STEP * of_x, y - OUTER_STEP * of_y
        excess = (x.sum() + y.sum()) / (3 * size)
        x, y = x - excess, y - excess
        center = np.clip(center - CENTER_STEP * of_center, -radius, radius)
    return x, y


def _radius(size: int) -> float:
    """Beyond the multiplier of the solution, -√(3 size)."""
    return max(100.0, 2 * (3 * size) ** 0.5)
