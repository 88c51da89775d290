"""Models whose parameters are those of a file, made without ever having others."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

Arrays = Mapping[str, Callable[[], np.ndarray]]
"""What makes each parameter, by its path in the model: "blocks.0.attention.query.kernel"."""


class _OneKey(nnx.Rngs):
    """The same key at every draw: where only shapes count. To count draws takes time quadratic in their number."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def fill(build: Callable[[nnx.Rngs], Any], arrays: Arrays, dtype: DTypeLike = jnp.float32) -> Any:
    """The model that `build` builds, with those parameters in that dtype. One of them is made at a time.

    Raises:
      ValueError: a parameter is missing, one too many is there, or a shape is another; named.
    """
    model = nnx.eval_shape(lambda: build(_OneKey(0)))
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    if left := list(nnx.to_flat_state(rest)):
        raise ValueError(f"the model must have parameters and no other state; it has {left[0][0]}")
    flat = nnx.to_flat_state(parameters)
    names = [".".join(map(str, path)) for path, _ in flat]
    if odd := sorted(set(names) ^ set(arrays)):
        kind = "missing" if odd[0] in names else "of no use to the model"
        raise ValueError(f"parameter {odd[0]!r} is {kind}, as are {len(odd) - 1} more of either kind")
    filled = []
    for name, (path, parameter) in zip(names, flat, strict=True):
        array = arrays[name]()
        if array.shape != parameter.shape:
            raise ValueError(f"parameter {name!r} must be of shape {parameter.shape}; got {array.shape}")
        filled.append((path, parameter.replace(jnp.asarray(array, dtype))))
    return nnx.merge(graph, nnx.from_flat_state(filled))
