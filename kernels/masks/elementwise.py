"""Whether a kernel can evaluate a mask in its tiles: only what is done pair by pair compiles everywhere."""

from typing import Any

import jax
import jax.numpy as jnp

from kernels.equations import called
from kernels.masks.algebra import Mask

_PRIMITIVES = (
    "abs add and broadcast_in_dim convert_element_type copy div eq exp floor ge gt iota integer_pow le log lt max min "
    "mul ne neg not or pow rem reshape select_n shift_left shift_right_arithmetic shift_right_logical sign sqrt square "
    "squeeze sub tanh xor"
)
_PAIR_BY_PAIR = frozenset(_PRIMITIVES.split())


def not_elementwise(mask: Mask | None, axes: int) -> str | None:
    """What a mask does besides arithmetic on pairs (the name of a primitive), or None.

    Args:
      mask: a mask on a grid of that many problem axes, or its shapes.
    """
    if mask is None:
        return None
    leaves, structure = jax.tree.flatten(mask)
    size = 8

    def tile(leaf: Any) -> jax.ShapeDtypeStruct:
        rows, columns = (1 if extent == 1 else size for extent in leaf.shape[axes : axes + 2])
        return jax.ShapeDtypeStruct((rows, columns, *leaf.shape[axes + 2 :]), leaf.dtype)

    def allowed(rows: Any, columns: Any, *leaves: Any) -> Any:
        return structure.unflatten(leaves).allowed(rows, columns)

    positions = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((size, 1), (1, size))]
    return _foreign(jax.make_jaxpr(allowed)(*positions, *map(tile, leaves)).jaxpr)


def _foreign(jaxpr: Any) -> str | None:
    for equation in jaxpr.eqns:
        if inner := called(equation):
            found = _foreign(inner[0])
            if found is not None:
                return found
        elif equation.primitive.name not in _PAIR_BY_PAIR:
            return equation.primitive.name
    return None
