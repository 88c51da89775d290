"""Tile functions as GPUs want them: without axes of 1, and with matrix products in 16 bits.

A function is traced with sizes for rows and columns that nothing else has, so that each axis of every value in it is
known by its size. Then it is evaluated on arrays that lack the axes of 1 (what varies along rows is (rows,), not
(rows, 1)), that have features last, and that have columns before rows where that saves transposing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jax.interpreters import partial_eval
from jaxtyping import Array

from kernels.equations import bind, called

ROWS, COLUMNS = 10007, 10009
"""The sizes with which functions are traced."""
_LOG2_E = 1 / math.log(2)


@dataclass(frozen=True, eq=False)
class Compact:
    """A function to evaluate in tiles of that many rows and columns.

    Attributes:
      flipped: whether what varies along both rows and columns is held as (columns, rows).
      dtype: of the operands of matrix products; sums are float32. A factor is never rounded into an operand: it is
        applied to the product.
    """

    jaxpr: Any
    rows: int
    columns: int
    flipped: bool
    dtype: Any

    @staticmethod
    def of(
        function: Callable[..., Any],
        arguments: Sequence[Any],
        tile: tuple[int, int],
        *,
        flipped: bool = False,
        dtype: Any = jnp.float32,
        wanted: Sequence[bool] | None = None,
    ) -> "Compact":
        """Of a function of arguments of those shapes and dtypes, where rows are `ROWS` and columns `COLUMNS`."""
        closed = jax.make_jaxpr(function)(*arguments)
        if closed.consts:
            raise ValueError("a tile function can hold numbers, but no arrays")
        asked = [True] * len(closed.jaxpr.outvars) if wanted is None else list(wanted)
        jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, asked, instantiate=True)
        return Compact(jaxpr, *tile, flipped, jnp.dtype(dtype))

    def __call__(self, *arrays: Array) -> list[Any]:
        """Results but for their `factors`, of arguments that may be narrower than traced."""
        return self._evaluate(self.jaxpr, arrays, [source for source, _ in map(self._source, self.jaxpr.outvars)])

    @property
    def factors(self) -> list[float]:
        """What the results are to be multiplied with: sums of them once, at the end."""
        return [factor for _, factor in map(self._source, self.jaxpr.outvars)]

    @property
    def only_in_products(self) -> list[bool]:
        """Of each argument, whether it is nothing but an operand of matrix products, perhaps times a number."""
        others = {source for source, _ in map(self._source, self.jaxpr.outvars)}
        for equation in self.jaxpr.eqns:
            if equation.primitive.name != "dot_general" and _multiplied(equation) is None:
                others.update(self._source(atom)[0] for atom in equation.invars if not isinstance(atom, Literal))
        return [argument not in others for argument in self.jaxpr.invars]

    def order(self, shape: Sequence[Any]) -> list[int]:
        """Which axes of a value of that shape there are, in their order: rows and columns, then features."""
        first = (COLUMNS, ROWS) if self.flipped else (ROWS, COLUMNS)
        kept = [axis for axis, size in enumerate(shape) if size != 1]
        return sorted(kept, key=lambda axis: first.index(shape[axis]) if shape[axis] in first else len(first))

    def shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """Of a value of that traced shape, the shape that it is held in."""
        sizes = {ROWS: self.rows, COLUMNS: self.columns}
        return tuple(sizes.get(shape[axis], shape[axis]) for axis in self.order(shape))

    @cached_property
    def _makers(self) -> dict[Any, Any]:
        return {variable: equation for equation in self.jaxpr.eqns for variable in equation.outvars}

    def _source(self, atom: Any) -> tuple[Any, float]:
        """What a value is a multiple of, and the factor."""
        factor = 1.0
        while not isinstance(atom, Literal) and atom in self._makers:
            found = _multiplied(self._makers[atom])
            if found is None:
                break
            atom, factor = found[0], factor * found[1]
        return atom, factor

    def _evaluate(self, jaxpr: Any, arguments: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))

        def held(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        def read(atom: Any) -> Any:
            value = held(atom)
            # What a function is called with may be a literal too.
            return value.astype(atom.aval.dtype) if isinstance(value, jax.Array) else value

        for equation in jaxpr.eqns:
            name, inputs = equation.primitive.name, equation.invars
            if _only_ones(equation):
                results = [held(inputs[0])]
            elif inner := called(equation):
                results = self._evaluate(inner[0], [held(atom) for atom in inputs], inner[0].outvars)
            elif name == "dot_general":
                sources = [self._source(atom) for atom in inputs]
                operands = [jnp.asarray(held(source)).astype(self.dtype) for source, _ in sources]
                product, factor = self._product(equation, operands), math.prod(factor for _, factor in sources)
                results = [product if factor == 1 else product * factor]
            else:
                results = self._apply(equation, [read(atom) for atom in inputs])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in outputs]

    def _product(self, equation: Any, operands: list[Any]) -> Any:
        shapes = [atom.aval.shape for atom in equation.invars]
        axes = [axis for (axis,) in equation.params["dimension_numbers"][0]]
        after = equation.outvars[0].aval.shape
        if 1 in (*shapes[0], *shapes[1]):
            return self._small_product(shapes, axes, after, [operand.astype(jnp.float32) for operand in operands])
        contracted = [self.order(shape).index(axis) for shape, axis in zip(shapes, axes, strict=True)]
        if self.order(after) == [1, 0]:
            operands, contracted = operands[::-1], contracted[::-1]
        numbers = (((contracted[0],), (contracted[1],)), ((), ()))
        # Float32 is IEEE float32, not TF32.
        precision = lax.Precision.HIGHEST if self.dtype == jnp.float32 else None
        first, second = operands
        return lax.dot_general(first, second, numbers, precision=precision, preferred_element_type=jnp.float32)

    def _small_product(self, shapes: Sequence[Any], axes: Sequence[int], after: Any, operands: list[Any]) -> Any:
        """Of a vector and a matrix, or of two vectors."""
        if shapes[0][axes[0]] == 1:
            places = ((0, 0), (1, 1))  # the axis that is left is that of the result
            first, second = (
                self._broadcast(operand, shape, after, place)
                for operand, shape, place in zip(operands, shapes, places, strict=True)
            )
            return first * second
        if len(self.order(shapes[0])) < len(self.order(shapes[1])):
            shapes, axes, operands = shapes[::-1], axes[::-1], operands[::-1]
        matrix, vector = operands
        spread = self._broadcast(vector, (shapes[0][axes[0]],), shapes[0], (axes[0],))
        return (matrix * spread).sum(axis=self.order(shapes[0]).index(axes[0]))

    def _apply(self, equation: Any, values: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        before = [tuple(atom.aval.shape) for atom in equation.invars]
        after = tuple(equation.outvars[0].aval.shape)
        if name == "exp":
            return [jnp.exp2(values[0] * _LOG2_E)]
        if name == "broadcast_in_dim":
            return [self._broadcast(values[0], before[0], after, params["broadcast_dimensions"])]
        if name == "transpose":
            there = self.order(before[0])
            return [_permuted(values[0], [there.index(params["permutation"][axis]) for axis in self.order(after)])]
        if name == "iota":
            size = after[params["dimension"]]
            line = lax.iota(params["dtype"], *self.shape((size,)))
            return [self._broadcast(line, (size,), after, (params["dimension"],))]
        if name.startswith("reduce_"):
            there = self.order(before[0])
            axes = tuple(there.index(axis) for axis in params["axes"] if axis in there)
            return bind(equation, values[:1], axes=axes)
        # Element by element: axes of 1 are repeated.
        values = [
            value if shape in ((), after) else self._broadcast(value, shape, after, range(len(after)))
            for value, shape in zip(values, before, strict=True)
        ]
        return bind(equation, values)

    def _broadcast(self, value: Any, before: Sequence[Any], after: Sequence[Any], places: Sequence[Any]) -> Any:
        there, wanted = [places[axis] for axis in self.order(before)], self.order(after)
        if sorted(there) == sorted(wanted):
            return _permuted(value, [there.index(axis) for axis in wanted])
        return lax.broadcast_in_dim(value, self.shape(after), [wanted.index(axis) for axis in there])


def _permuted(value: Any, order: Sequence[Any]) -> Any:
    return value if list(order) == sorted(order) else lax.transpose(value, order)


def _multiplied(equation: Any) -> tuple[Any, float] | None:
    """The operand and the number, if all that is done is to multiply with one, or to add or take axes of 1."""
    first, *others = equation.invars
    if _only_ones(equation):
        return first, 1.0
    if equation.primitive.name != "mul" or jnp.issubdtype(first.aval.dtype, jnp.integer):
        return None
    if isinstance(others[0], Literal):
        return first, float(others[0].val)
    return (others[0], float(first.val)) if isinstance(first, Literal) else None


def _only_ones(equation: Any) -> bool:
    """Whether all that is done is to add or take axes of 1."""
    name = equation.primitive.name
    if name not in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "reduce_sum", "reduce_max", "reduce_min"):
        return name == "copy"
    shapes = [[size for size in atom.aval.shape if size != 1] for atom in (equation.invars[0], equation.outvars[0])]
    return shapes[0] == shapes[1]
