"""Flash attention as a JAX primitive whose derivative is a sum over pairs, and so are all further ones."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array, Float

from kernels.cut import Held
from kernels.implementation import Operation
from kernels.loop import Output
from kernels.pairwise.primitive import pairwise_sum, transposed, zero_of
from kernels.pairwise.tiles import Scores, Tangent, WeightedSums
from kernels.problem import Problem
from kernels.shapes import accumulator

flash_attention_p = Primitive("flash_attention")
flash_attention_p.multiple_results = True
_PASSED_ON = ("sizes", "axes", "tiles", "implementation")


def flash_attention(
    problem: Problem,
) -> tuple[Float[Array, "flat kv_heads groups rows 1 value_width"], Float[Array, "flat kv_heads groups rows 1"]]:
    """Output, in the query's dtype, and log-sum-exp, in float32 or wider."""
    leaves, structure = jax.tree.flatten(problem.mask)
    output, lse = flash_attention_p.bind(
        problem.query,
        problem.key,
        problem.value,
        *problem.biases,
        *leaves,
        scores=problem.scores,
        structure=structure,
        sizes=problem.grid.sizes,
        axes=3,
        tiles=problem.tiles,
        implementation=problem.implementation,
    )
    return output, lse


def _split(arrays: Sequence[Any], scores: Scores) -> tuple[list[Any], list[Any]]:
    """Query, key, value and perhaps bias; the leaves of the mask behind them."""
    count = 4 if scores.biased else 3
    return list(arrays[:count]), list(arrays[count:])


def _abstract(*arrays: Any, scores: Scores, sizes: tuple[int, int], axes: int, **_: Any) -> list[Any]:
    operands, leaves = _split(arrays, scores)
    query, value = operands[0], operands[2]
    problems = jnp.broadcast_shapes(*(array.shape[:axes] for array in (*operands, *leaves)))
    output = ShapedArray((*problems, sizes[0], 1, value.shape[-1]), query.dtype)
    return [output, ShapedArray((*problems, sizes[0], 1), accumulator(query.dtype))]


def _arguments(*arrays: Any, scores: Scores, structure: Any, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    operands, leaves = _split(arrays, scores)
    return tuple(operands), {"mask": structure.unflatten(leaves), "scores": scores, **options}


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Array], list[Any]]:
    operands, leaves = _split(primals, params["scores"])
    changes, _ = _split(tangents, params["scores"])
    output, lse = flash_attention_p.bind(*primals, **params)
    moved = [not isinstance(change, ad.Zero) for change in changes]
    if not any(moved):
        return [output, lse], [zero_of(output), zero_of(lse)]
    # exp(score - inf) = 0: a row that reads nothing has no weights, and no derivative.
    divisor = jnp.where(lse == -jnp.inf, jnp.inf, lse)
    query, key, value, *bias = operands
    function = Tangent(WeightedSums(params["scores"]), (*moved[:3], False, *moved[3:]))
    precision = lse.dtype
    summed, change_of_lse = pairwise_sum(
        function,
        [query, key, value, divisor, *bias, *(change for change in changes if not isinstance(change, ad.Zero))],
        params["structure"].unflatten(leaves),
        [Output(output.shape, precision), Output(lse.shape, precision)],
        **{name: params[name] for name in _PASSED_ON},
    )
    # In the order that loops hold such arrays in, so that nothing is copied for it.
    problems = output.shape[: params["axes"]]
    held = Held(output.shape, problems, problems)
    of_lse, whole = held.hold(change_of_lse[..., None])[..., 0], held.hold(output.astype(precision))
    change_of_output = held.release(held.hold(summed) + jnp.einsum("...,...f->...f", -of_lse, whole))
    return [output, lse], [change_of_output.astype(output.dtype), change_of_lse]


def _transpose(cotangents: Sequence[Any], *arrays: Any, **params: Any) -> list[Any]:
    """In value alone, in which the output is linear."""
    operands, leaves = _split(arrays, params["scores"])
    query, key, value, *bias = operands
    if [ad.is_undefined_primal(operand) for operand in operands] != [False, False, True, *(False for _ in bias)]:
        raise NotImplementedError("attention is linear, and has a transpose, in value alone")
    pull, _ = cotangents
    if isinstance(pull, ad.Zero):
        return [None, None, ad.Zero(value.aval), *(None for _ in (*bias, *leaves))]
    nothing = jnp.zeros((*value.aval.shape[:-1], 1), value.aval.dtype)
    _, lse = flash_attention_p.bind(query, key, nothing, *bias, *leaves, **params)
    divisor = jnp.where(lse == -jnp.inf, jnp.inf, lse)
    linear = [None, None, value.aval.shape, None, *(None for _ in bias)]
    (back,) = pairwise_sum(
        transposed(WeightedSums(params["scores"]), linear, (True, False), params["sizes"], params["axes"]),
        [query, key, divisor, *bias, pull],
        params["structure"].unflatten(leaves),
        [Output(value.aval.shape, value.aval.dtype)],
        **{name: params[name] for name in _PASSED_ON},
    )
    return [None, None, back, *(None for _ in (*bias, *leaves))]


def _batch(arrays: Sequence[Any], dimensions: Sequence[Any], **params: Any) -> tuple[list[Array], list[int]]:
    arrays = [
        array[None] if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, dimensions, strict=True)
    ]
    return flash_attention_p.bind(*arrays, **params | {"axes": params["axes"] + 1}), [0, 0]


@lru_cache(maxsize=256)
def _program(params: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(partial(flash_attention_p.bind, **dict(params)))


def _compiled(*arrays: Array, **params: Any) -> list[Array]:
    return _program(tuple(params.items()))(*arrays)


flash_attention_p.def_impl(_compiled)
flash_attention_p.def_abstract_eval(_abstract)
ad.primitive_jvps[flash_attention_p] = _jvp
ad.primitive_transposes[flash_attention_p] = _transpose
batching.primitive_batchers[flash_attention_p] = _batch
operation = Operation("kernels.dense", "attention", _arguments)
operation.register(flash_attention_p)
