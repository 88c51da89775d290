"""Tile functions with matrix products in the one order that XLA multiplies fast on a CPU, and sums as products."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array, Float

from kernels.equations import bind, called
from kernels.loop import Pairs
from kernels.pairwise.tiles import TileFunction


def rows_by_columns(function: TileFunction) -> TileFunction:
    """The same function, in which every product of matrices sums over the last axis of its left operand.

    Transposing a product makes ones that sum over rows, which take XLA twice as long on a CPU as first writing the
    transposed matrix down. The sum of a matrix over an axis is faster as a product with ones.
    """

    def evaluate(pairs: Pairs, *operands: Array) -> Sequence[Array]:
        allowed = () if pairs.allowed is None else (pairs.allowed,)

        def flat(rows: Array, columns: Array, *rest: Array) -> tuple[Array, ...]:
            within, values = (rest[0], rest[1:]) if allowed else (None, rest)
            return tuple(function(Pairs(rows, columns, within), *values))

        given = (pairs.rows, pairs.columns, *allowed, *operands)
        program = jax.make_jaxpr(flat)(*given)
        return _evaluate(program.jaxpr, program.consts, given)

    return evaluate


def _evaluate(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if inner := called(equation):
            results = _evaluate(*inner, inputs)
        elif equation.primitive.name == "dot_general":
            results = _product(equation, *inputs)
        elif equation.primitive.name == "reduce_sum" and inputs[0].ndim == 2 and len(equation.params["axes"]) == 1:
            results = [sum_over(*inputs, *equation.params["axes"])]
        else:
            results = bind(equation, inputs)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _product(equation: Any, a: Array, b: Array) -> list[Array]:
    (left, right), batch = equation.params["dimension_numbers"]
    if tuple(left) == (0,) and a.ndim == 2 and b.ndim == 2:
        # Behind a barrier, or XLA would take the transposition back into the product.
        a, left = lax.optimization_barrier(a.T), (1,)
    return bind(equation, (a, b), dimension_numbers=((left, right), batch))


def sum_over(matrix: Float[Array, "rows columns"], axis: int) -> Float[Array, " others"]:
    """Its sum over rows (0) or columns (1)."""
    ones = lax.full((matrix.shape[axis],), 1, matrix.dtype)
    return lax.dot_general(matrix, ones, (((axis,), (0,)), ((), ())))
