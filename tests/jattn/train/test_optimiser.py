"""The optimiser against its formulas, written out in numpy."""

import jax.numpy as jnp
import numpy as np
import optax

from jattn.train import adamw_with_warm_up


def test_steps_are_the_formulas() -> None:
    """Clipping, both moments with their corrections, the schedule, and decay of the matrix alone."""
    rate, warm_up, steps, lowest, decay, b1, b2 = 0.1, 2, 6, 0.01, 0.3, 0.9, 0.95
    optimiser = adamw_with_warm_up(rate, warm_up, steps, lowest=lowest, b2=b2, weight_decay=decay)
    rng = np.random.default_rng(0)
    have = {"matrix": jnp.asarray(rng.normal(size=(2, 3))), "scale": jnp.asarray(rng.normal(size=3))}
    want = {name: np.asarray(value, np.float64) for name, value in have.items()}
    first, second = ({name: np.zeros_like(value) for name, value in want.items()} for _ in range(2))
    state = optimiser.init(have)
    for step in range(steps):
        slope = {name: rng.normal(size=value.shape) for name, value in want.items()}
        update, state = optimiser.update({name: jnp.asarray(value) for name, value in slope.items()}, state, have)
        have = optax.apply_updates(have, update)
        norm = np.sqrt(sum((value**2).sum() for value in slope.values()))
        fallen = (1 + np.cos(np.pi * (step - warm_up) / (steps - warm_up))) / 2
        now = rate * step / warm_up if step < warm_up else lowest + (rate - lowest) * fallen
        for name, value in want.items():
            clipped = slope[name] / max(norm, 1)
            first[name] = b1 * first[name] + (1 - b1) * clipped
            second[name] = b2 * second[name] + (1 - b2) * clipped**2
            moved = first[name] / (1 - b1 ** (step + 1)) / (np.sqrt(second[name] / (1 - b2 ** (step + 1))) + 1e-8)
            want[name] = value - now * (moved + (decay * value if name == "matrix" else 0))
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, rtol=1e-4, atol=1e-5)
