"""Tile functions as matrix units want them: matrix products in 16 bits, and nothing that is not asked for."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float

from kernels.loop import Pairs
from kernels.pairwise.tiles import TileFunction

_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "checkpoint", "remat2")


def in_dtype(
    function: TileFunction, dtype: Any, wanted: Sequence[bool] | None = None
) -> Callable[..., list[Float[Array, "..."] | None]]:
    """A tile function whose matrix products have operands of that dtype, and sums in float32; float32 changes nothing.

    A factor that is no power of 2 is not rounded into an operand: it is applied to the product. Outputs that are not
    wanted are None, and nothing is computed for them.
    """

    def evaluate(pairs: Pairs, *operands: Float[Array, "..."]) -> list[Array | None]:
        allowed = () if pairs.allowed is None else (pairs.allowed,)
        given = (pairs.rows, pairs.columns, *allowed, *operands)

        def flat(*arrays: Array) -> tuple[Array, ...]:
            rows, columns, *rest = arrays
            within = rest.pop(0) if allowed else None
            return tuple(function(Pairs(rows, columns, within), *rest))

        program = jax.make_jaxpr(flat)(*given)
        asked = [True] * len(program.jaxpr.outvars) if wanted is None else list(wanted)
        return _evaluate(program.jaxpr, program.consts, given, jnp.dtype(dtype), asked)

    return evaluate


def _evaluate(
    jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any], dtype: Any, wanted: Sequence[bool]
) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    factors: dict[Any, tuple[Any, float]] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in _needed(jaxpr, wanted):
        name, inputs = equation.primitive.name, [read(atom) for atom in equation.invars]
        if name == "dot_general" and dtype.itemsize == 2:
            unscaled = [
                _without_factor(factors, atom, value) for atom, value in zip(equation.invars, inputs, strict=True)
            ]
            options = equation.params | {"precision": None, "preferred_element_type": jnp.float32}
            product = equation.primitive.bind(*(value.astype(dtype) for value, _ in unscaled), **options)
            factor = math.prod(factor for _, factor in unscaled)
            results = [product if factor == 1 else product * jnp.float32(factor)]
        elif name in _CALLS:
            inner = equation.params["call_jaxpr" if "call_jaxpr" in equation.params else "jaxpr"]
            asked = [True] * len(equation.outvars)
            results = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, dtype, asked)
        else:
            bound = equation.primitive.get_bind_params(equation.params)
            functions, options = bound if isinstance(bound, tuple) else ((), bound)  # a tuple before JAX 0.10
            results = equation.primitive.bind(*functions, *inputs, **options)
            results = results if equation.primitive.multiple_results else [results]
        if name == "mul":
            _note_factor(factors, equation, inputs)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) if asked else None for atom, asked in zip(jaxpr.outvars, wanted, strict=True)]


def _needed(jaxpr: Any, wanted: Sequence[bool]) -> list[Any]:
    """The equations that the wanted outputs depend on."""
    live = {atom for atom, asked in zip(jaxpr.outvars, wanted, strict=True) if asked and not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if any(variable in live for variable in equation.outvars):
            kept.append(equation)
            live.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return kept[::-1]


def _note_factor(factors: dict[Any, tuple[Any, float]], equation: Any, inputs: Sequence[Any]) -> None:
    """Remember a product with a number that 16 bits would round."""
    for atom, value, other in (
        (equation.invars[0], inputs[0], inputs[1]),
        (equation.invars[1], inputs[1], inputs[0]),
    ):
        if isinstance(atom, Literal) and jnp.ndim(value) == 0 and math.frexp(float(value))[0] not in (0.5, -0.5, 0.0):
            factors[equation.outvars[0]] = other, float(value)


def _without_factor(factors: dict[Any, tuple[Any, float]], atom: Any, value: Any) -> tuple[Any, float]:
    """What a product's operand is a multiple of, and the factor."""
    return (value, 1.0) if isinstance(atom, Literal) else factors.get(atom, (value, 1.0))
