"""The sum over pairs as a JAX primitive.

A sum over pairs of a tile function has as its derivative the sum of the tile function's derivative, and as its
transpose the sum of the transpose. So one primitive with three rules (jvp, transpose, batching) gives every derivative
of everything built on it, in either mode and to any order, at the memory of the operands.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array

from kernels.implementation import Operation
from kernels.loop import Output
from kernels.masks.algebra import Mask
from kernels.pairwise.tiles import Shape, Tangent, TileFunction, Transpose
from kernels.schedule import Tiles
from kernels.shapes import tile_features

pairwise_sum_p = Primitive("pairwise_sum")
pairwise_sum_p.multiple_results = True


def pairwise_sum(
    function: TileFunction,
    operands: Sequence[Array],
    mask: Mask | None,
    outputs: Sequence[Output],
    *,
    sizes: tuple[int, int],
    axes: int = 3,
    tiles: Tiles | None = None,
    implementation: str | None = None,
) -> list[Array]:
    """Sums of a tile function over the allowed pairs.

    Args:
      function: what a tile adds.
      operands: floating-point arrays on the grid: `axes` problem axes, rows, columns, features; 1 where they do
        not vary.
      mask: a mask on the grid.
      outputs: their shapes on the grid and dtypes; an output is summed over every axis where it has 1.
      sizes: rows and columns.
      implementation: "xla", "gpu", "tpu", or None for the platform's own.
    """
    leaves, structure = jax.tree.flatten(mask)
    return pairwise_sum_p.bind(
        *operands,
        *leaves,
        function=function,
        structure=structure,
        outputs=tuple(outputs),
        sizes=sizes,
        axes=axes,
        tiles=tiles,
        implementation=implementation,
    )


def _split(arrays: Sequence[Any], structure: Any) -> tuple[list[Any], list[Any]]:
    """Operands, and the leaves of the mask behind them."""
    count = len(arrays) - structure.num_leaves
    return list(arrays[:count]), list(arrays[count:])


def _abstract(*arrays: Any, outputs: tuple[Output, ...], **_: Any) -> list[ShapedArray]:
    return [ShapedArray(output.shape, output.dtype) for output in outputs]


def _arguments(
    *arrays: Any, function: TileFunction, structure: Any, **options: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    operands, leaves = _split(arrays, structure)
    return (function, operands, structure.unflatten(leaves)), options


def zero_of(result: Array) -> ad.Zero:
    """The tangent of what does not depend on what moves."""
    return ad.Zero(jax.typeof(result).to_tangent_aval())


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Array], list[Any]]:
    operands, leaves = _split(primals, params["structure"])
    changes, _ = _split(tangents, params["structure"])
    moved = tuple(not isinstance(change, ad.Zero) for change in changes)
    results = pairwise_sum_p.bind(*primals, **params)
    if not any(moved):
        return results, [zero_of(result) for result in results]
    moving = [change for change, moves in zip(changes, moved, strict=True) if moves]
    tangent = params | {"function": Tangent(params["function"], moved)}
    return results, pairwise_sum_p.bind(*operands, *moving, *leaves, **tangent)


def transposed(
    function: TileFunction,
    linear: Sequence[tuple[int, ...] | None],
    pulled: tuple[bool, ...],
    sizes: tuple[int, int],
    axes: int,
) -> Transpose:
    """The transpose of a tile function in those operands whose shape on the grid is given."""
    shapes = tuple(
        None
        if shape is None
        else Shape(shape[axes] == sizes[0], shape[axes + 1] == sizes[1], tile_features(shape, axes))
        for shape in linear
    )
    return Transpose(function, shapes, pulled)


def _transpose(cotangents: Sequence[Any], *arrays: Any, **params: Any) -> list[Any]:
    operands, leaves = _split(arrays, params["structure"])
    linear = [operand.aval if ad.is_undefined_primal(operand) else None for operand in operands]
    pulled = tuple(not isinstance(cotangent, ad.Zero) for cotangent in cotangents)
    if not any(pulled):
        return [None if aval is None else ad.Zero(aval) for aval in linear] + [None] * len(leaves)
    known = [operand for operand, aval in zip(operands, linear, strict=True) if aval is None]
    pulls = [cotangent for cotangent, pulls in zip(cotangents, pulled, strict=True) if pulls]
    outputs = tuple(Output(aval.shape, aval.dtype) for aval in linear if aval is not None)
    shapes = [None if aval is None else aval.shape for aval in linear]
    function = transposed(params["function"], shapes, pulled, params["sizes"], params["axes"])
    results = iter(pairwise_sum_p.bind(*known, *pulls, *leaves, **params | {"function": function, "outputs": outputs}))
    return [None if aval is None else next(results) for aval in linear] + [None] * len(leaves)


def _batch(arrays: Sequence[Any], dimensions: Sequence[Any], **params: Any) -> tuple[list[Array], list[int]]:
    size = next(array.shape[axis] for array, axis in zip(arrays, dimensions, strict=True) if axis is not None)
    # What is not mapped stays one, and is summed over where its transpose is taken.
    arrays = [
        array[None] if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, dimensions, strict=True)
    ]
    outputs = tuple(Output((size, *output.shape), output.dtype) for output in params["outputs"])
    results = pairwise_sum_p.bind(*arrays, **params | {"outputs": outputs, "axes": params["axes"] + 1})
    return results, [0] * len(results)


@lru_cache(maxsize=256)
def _program(params: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(partial(pairwise_sum_p.bind, **dict(params)))


def _compiled(*arrays: Array, **params: Any) -> list[Array]:
    return _program(tuple(params.items()))(*arrays)


pairwise_sum_p.def_impl(_compiled)
pairwise_sum_p.def_abstract_eval(_abstract)
ad.primitive_jvps[pairwise_sum_p] = _jvp
ad.primitive_transposes[pairwise_sum_p] = _transpose
batching.primitive_batchers[pairwise_sum_p] = _batch
operation = Operation("kernels.pairwise", "pairwise_sum", _arguments)
operation.register(pairwise_sum_p)
