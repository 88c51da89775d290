"""What layers ask of training besides the task's loss: balanced use of heads, say."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class AuxiliaryLoss(nnx.Variable):
    """A scalar that a layer sets whenever it is called: no parameter, and there from the start, so that the structure
    of a model's state is the same before and after a step."""


def auxiliary_losses(model: Any) -> dict[str, Float[Array, ""]]:
    """What the layers of a model have set in its last call: by the attribute's name, the mean over layers."""
    found: dict[str, list[Array]] = {}
    for path, loss in nnx.to_flat_state(nnx.state(model, AuxiliaryLoss)):
        found.setdefault(str(path[-1]), []).append(loss[...])
    return {name: jnp.stack(losses).mean(axis=0) for name, losses in found.items()}
