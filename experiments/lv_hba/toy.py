"""The paper's second toy: inner solutions are many, one equality couples all variables, and the answer is known.

| paper | here |
| --- | --- |
| x, (y1, y2) | outer, inner |
| α, β, η | `outer_step`, `center_step`, `saddle_step` of the method |
| γ, r | `Proximity` |
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jattn.bilevel import LVHBA, Proximity, growing_penalty, solve
from jattn.bilevel.toys import CONVEX_TOY_ANSWER, convex_toy

PENALTY = growing_penalty(1.0, 0.45)
"""Of iteration k, (k + 1)^0.45."""


def errors(
    size: int, steps: int, record_every: int, penalty: float | None = None
) -> tuple[Float[np.ndarray, " records"], Float[np.ndarray, " size"]]:
    """The relative error of the outer variables by record, and the last of them.

    Args:
      penalty: constant; None: (k + 1)^0.45.
    """
    schedule = PENALTY if penalty is None else penalty
    # The multiplier is -1, and -√(3 size) of the row divided by its norm, which the radius must exceed.
    method = LVHBA(0.1, 1.0, 0.2, schedule, Proximity(2.0, 2.0, max(100.0, 2 * (3 * size) ** 0.5)))
    start = jnp.ones(size), jnp.ones((2, size))
    run = jax.jit(
        lambda x, y: solve(convex_toy(size), method, x, y, steps=steps, record_every=record_every).records.outer
    )
    found = np.asarray(run(*start), np.float64)
    return np.linalg.norm(found - CONVEX_TOY_ANSWER, axis=1) / (abs(CONVEX_TOY_ANSWER) * size**0.5), found[-1]
