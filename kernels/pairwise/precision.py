"""Tile functions as matrix units want them: matrix products in 16 bits, and nothing that is not asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float

from kernels.equations import bind, called
from kernels.loop import Pairs
from kernels.pairwise.tiles import TileFunction

_MOVES = ("squeeze", "reshape", "transpose", "expand_dims", "copy")
_NAMES = "abs add convert_element_type copy div eq exp ge gt integer_pow le log lt max min mul ne neg select_n sub tanh"
_ELEMENTWISE = frozenset(_NAMES.split())


@dataclass(frozen=True)
class Value:
    """A number array within a tile function, and what else is known of it that saves work.

    Attributes:
      array: what the tile function sees.
      narrow: in 16 bits what `array` is `factor` times, without rounding beyond that of a matrix product's operand.
      lanes: for an array (rows, 1) the same numbers along 128 lanes, so that to broadcast costs nothing.
    """

    array: Any
    narrow: Any = None
    factor: float = 1.0
    lanes: Any = None


def in_dtype(function: TileFunction, dtype: Any, wanted: Sequence[bool] | None = None) -> Callable[..., list[Any]]:
    """A tile function whose matrix products have operands of that dtype, and sums in float32; float32 changes nothing.

    A factor that is no power of 2 is not rounded into an operand: it is applied to the product. Outputs that are not
    wanted are None, and nothing is computed for them. The function takes arrays or `Value`s.
    """

    def evaluate(pairs: Pairs, *operands: Float[Array, "..."] | Value) -> list[Any]:
        allowed = () if pairs.allowed is None else (pairs.allowed,)
        given = [_value(operand) for operand in (pairs.rows, pairs.columns, *allowed, *operands)]

        def flat(*arrays: Array) -> tuple[Array, ...]:
            rows, columns, *rest = arrays
            within = rest.pop(0) if allowed else None
            return tuple(function(Pairs(rows, columns, within), *rest))

        program = jax.make_jaxpr(flat)(*(value.array for value in given))
        asked = [True] * len(program.jaxpr.outvars) if wanted is None else list(wanted)
        results = _evaluate(program.jaxpr, program.consts, given, jnp.dtype(dtype), asked)
        return [None if result is None else result.array for result in results]

    return evaluate


def _value(operand: Any) -> Value:
    return operand if isinstance(operand, Value) else Value(operand)


def _evaluate(
    jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value], dtype: Any, wanted: Sequence[bool]
) -> list[Any]:
    values: dict[Any, Value] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*map(_value, constants), *arguments], strict=True)
    )

    def read(atom: Any) -> Value:
        return Value(atom.val) if isinstance(atom, Literal) else values[atom]

    for equation in _needed(jaxpr, wanted):
        inputs = [read(atom) for atom in equation.invars]
        if inner := called(equation):
            results = _evaluate(*inner, inputs, dtype, [True] * len(equation.outvars))
        else:
            results = _apply(equation, inputs, dtype)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) if asked else None for atom, asked in zip(jaxpr.outvars, wanted, strict=True)]


def _apply(equation: Any, inputs: Sequence[Value], dtype: Any) -> list[Any]:
    """The results of one equation."""
    name, arrays = equation.primitive.name, [value.array for value in inputs]
    if name == "dot_general" and dtype.itemsize == 2:
        operands = [array.astype(dtype) if value.narrow is None else value.narrow
                    for value, array in zip(inputs, arrays, strict=True)]  # fmt: skip
        (product,) = bind(equation, operands, precision=None, preferred_element_type=jnp.float32)
        factor = math.prod(value.factor for value in inputs if value.narrow is not None)
        return [Value(product if factor == 1 else product * jnp.float32(factor))]
    lanes = _in_lanes(equation, inputs)
    if name == "broadcast_in_dim" and lanes is not None:
        width = equation.params["shape"][1]
        return [Value(jnp.concatenate([lanes] * -(-width // lanes.shape[1]), axis=1)[:, :width])]
    results = bind(equation, arrays)
    if len(results) > 1:
        return [Value(result) for result in results]
    narrow, factor = _in_narrow(equation, inputs, dtype)
    return [Value(results[0], narrow, factor, lanes)]


def _in_lanes(equation: Any, inputs: Sequence[Value]) -> Any:
    """The result along 128 lanes if that is known of all that is not one number; to broadcast, the operand."""
    name, many = equation.primitive.name, [value for value in inputs if jnp.ndim(value.array) > 0]
    if not many or any(value.lanes is None for value in many):
        return None
    if name == "broadcast_in_dim":
        whole = len(equation.params["shape"]) == 2 and equation.params["broadcast_dimensions"] == (0, 1)
        return many[0].lanes if whole and equation.params["shape"][0] == many[0].lanes.shape[0] else None
    if name not in _ELEMENTWISE:
        return None
    return bind(equation, [value.array if value.lanes is None else value.lanes for value in inputs])[0]


def _in_narrow(equation: Any, inputs: Sequence[Value], dtype: Any) -> tuple[Any, float]:
    """What the result is in 16 bits but for a factor, where that needs no rounding of its own."""
    name = equation.primitive.name
    if dtype.itemsize != 2:
        return None, 1.0
    if name in _MOVES and inputs[0].narrow is not None:
        return bind(equation, [inputs[0].narrow])[0], inputs[0].factor
    if name == "mul":
        for number, (atom, other) in enumerate(zip(equation.invars, inputs[::-1], strict=True)):
            literal = inputs[number].array
            if isinstance(atom, Literal) and jnp.ndim(literal) == 0:
                if other.narrow is not None:
                    return other.narrow, other.factor * float(literal)
                if math.frexp(float(literal))[0] not in (0.5, -0.5, 0.0):
                    return other.array.astype(dtype), float(literal)
    return None, 1.0


def _needed(jaxpr: Any, wanted: Sequence[bool]) -> list[Any]:
    """The equations that the wanted outputs depend on."""
    live = {atom for atom, asked in zip(jaxpr.outvars, wanted, strict=True) if asked and not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if any(variable in live for variable in equation.outvars):
            kept.append(equation)
            live.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return kept[::-1]
