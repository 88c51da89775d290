"""The two sums of linear attention as JAX primitives whose derivatives are made of themselves.

`decayed_product` is Σ_{j ≤ i} decay_ij (query_i · key_j) value_j with decay_ij = exp(Σ_{j < s ≤ i} log_decay_s), and in
reverse the same over j ≥ i: linear in query, in key and in value, and each transpose is one more of its kind.
`unit_solve` is the u of which u_i + Σ_{j < i} decay_ij (query_i · key_j) u_j = target_i: its derivative is a sum and
one more solution, its transpose the solution in reverse. So every derivative, in either mode and to any order, costs a
few passes of the same kernels and memory linear in length (Qin et al. 2024, arXiv 2405.17381, algorithms 1 and 2, for
constant decay; Yang et al. 2024, arXiv 2406.06484, for the solution).
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array, Float

from kernels.implementation import Operation
from kernels.schedule import Tiles
from kernels.shapes import accumulator

decayed_product_p = Primitive("decayed_product")
unit_solve_p = Primitive("unit_solve")


def decayed_product(
    query: Float[Array, "*#problems length width"],
    key: Float[Array, "*#problems length width"],
    value: Float[Array, "*#problems length value_width"],
    log_decay: Float[Array, "*#problems #length"],
    *,
    reverse: bool = False,
    tiles: Tiles | None = None,
    implementation: str | None = None,
) -> Float[Array, "*problems length value_width"]:
    """The sum over the tokens up to each. Problem axes of 1 are broadcast; log_decay may be one for all tokens."""
    return _bind(decayed_product_p, query, key, value, log_decay, reverse, tiles, implementation)


def unit_solve(
    query: Float[Array, "*#problems length width"],
    key: Float[Array, "*#problems length width"],
    target: Float[Array, "*#problems length value_width"],
    log_decay: Float[Array, "*#problems #length"],
    *,
    reverse: bool = False,
    tiles: Tiles | None = None,
    implementation: str | None = None,
) -> Float[Array, "*problems length value_width"]:
    """What gives the target when what is read of the tokens before is added. Axes as for `decayed_product`."""
    return _bind(unit_solve_p, query, key, target, log_decay, reverse, tiles, implementation)


def _bind(primitive: Primitive, *arrays_and_options: Any) -> Array:
    *arrays, reverse, tiles, implementation = arrays_and_options
    length = arrays[0].shape[-2]
    options = {"reverse": reverse, "tiles": tiles, "implementation": implementation}
    return primitive.bind(*arrays, **options, axes=arrays[0].ndim - 2, sizes=(length, length))[0]


def _abstract(query: Any, key: Any, value: Any, log_decay: Any, *, axes: int, **_: Any) -> list[ShapedArray]:
    problems = jnp.broadcast_shapes(*(array.shape[:axes] for array in (query, key, value, log_decay)))
    return [ShapedArray((*problems, *value.shape[axes:]), query.dtype)]


def _passed(log_decay: Any, params: dict[str, Any]) -> Array:
    """The sum of (changes of) log decays up to each token, as a factor on features."""
    tokens = jnp.broadcast_to(log_decay, (*log_decay.shape[:-1], params["sizes"][0]))
    total = tokens.astype(accumulator(tokens.dtype)).cumsum(axis=-1)[..., None]
    return -total if params["reverse"] else total


def _moved(primals: Sequence[Any], tangents: Sequence[Any], params: dict[str, Any]) -> list[tuple[Array, Array]]:
    """Pairs of query and key whose decayed scores add up to the derivative of the decayed scores.

    decay_ij = exp(passed_i - passed_j), so a change of decay is one of query and one, the other way, of key.
    """
    query, key, _, _ = primals
    of_query, of_key, _, of_decay = tangents
    pairs = []
    for array, change, sign in ((query, of_query, 1), (key, of_key, -1)):
        total = None if isinstance(change, ad.Zero) else change
        if not isinstance(of_decay, ad.Zero):
            more = sign * _passed(of_decay, params) * array
            total = (more if total is None else total + more).astype(array.dtype)
        pairs.append(total)
    moved = [] if pairs[0] is None else [(pairs[0], key)]
    return moved if pairs[1] is None else [*moved, (query, pairs[1])]


def _product_jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Array], list[Any]]:
    query, key, value, log_decay = primals
    results = decayed_product_p.bind(*primals, **params)
    parts = [decayed_product_p.bind(*pair, value, log_decay, **params)[0] for pair in _moved(primals, tangents, params)]
    if not isinstance(tangents[2], ad.Zero):
        parts.append(decayed_product_p.bind(query, key, tangents[2], log_decay, **params)[0])
    return results, [_total(parts, results[0])]


def _solve_jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list[Array], list[Any]]:
    query, key, _, log_decay = primals
    results = unit_solve_p.bind(*primals, **params)
    solution = results[0]
    # u + S u = w, so that u' + S u' = w' - S' u, and S' u is a decayed product without its last term.
    parts = []
    for moved_query, moved_key in _moved(primals, tangents, params):
        (whole,) = decayed_product_p.bind(moved_query, moved_key, solution, log_decay, **params)
        own = (moved_query * moved_key).sum(axis=-1, keepdims=True)
        parts.append(own * solution - whole)
    if not isinstance(tangents[2], ad.Zero):
        parts.append(tangents[2])
    if not parts:
        return results, [_total(parts, solution)]
    return results, unit_solve_p.bind(query, key, _total(parts, solution), log_decay, **params)


def _total(parts: Sequence[Array], like: Array) -> Any:
    if not parts:
        return ad.Zero(jax.typeof(like).to_tangent_aval())
    return sum(parts[1:], parts[0])


def _summed_to(array: Array, aval: Any) -> Array:
    """Summed over the axes along which the operand was broadcast."""
    axes = tuple(axis for axis, size in enumerate(aval.shape) if size == 1 and array.shape[axis] > 1)
    return array.sum(axis=axes, keepdims=True).astype(aval.dtype) if axes else array


def _product_transpose(cotangents: Sequence[Any], *operands: Any, **params: Any) -> list[Any]:
    query, key, value, log_decay = operands
    linear = [ad.is_undefined_primal(operand) for operand in operands]
    if linear[3] or sum(linear) != 1:
        raise NotImplementedError("linear attention has a transpose in query, in key or in value, one at a time")
    number, (pull,) = linear.index(True), cotangents
    back: list[Any] = [None] * 4
    aval = operands[number].aval
    if isinstance(pull, ad.Zero):
        back[number] = ad.Zero(aval)
        return back
    flipped = params | {"reverse": not params["reverse"]}
    if number == 0:
        (made,) = decayed_product_p.bind(pull, value, key, log_decay, **params)
    elif number == 1:
        (made,) = decayed_product_p.bind(value, pull, query, log_decay, **flipped)
    else:
        (made,) = decayed_product_p.bind(key, query, pull, log_decay, **flipped)
    back[number] = _summed_to(made, aval)
    return back


def _solve_transpose(cotangents: Sequence[Any], *operands: Any, **params: Any) -> list[Any]:
    query, key, target, log_decay = operands
    if [ad.is_undefined_primal(operand) for operand in operands] != [False, False, True, False]:
        raise NotImplementedError("the solution is linear, and has a transpose, in its target alone")
    (pull,) = cotangents
    if isinstance(pull, ad.Zero):
        return [None, None, ad.Zero(target.aval), None]
    (made,) = unit_solve_p.bind(key, query, pull, log_decay, **params | {"reverse": not params["reverse"]})
    return [None, None, _summed_to(made, target.aval), None]


def _batch(
    primitive: Primitive, arrays: Sequence[Any], dimensions: Sequence[Any], **params: Any
) -> tuple[list[Array], list[int]]:
    arrays = [
        array[None] if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, dimensions, strict=True)
    ]
    return primitive.bind(*arrays, **params | {"axes": params["axes"] + 1}), [0]


def _arguments(*arrays: Any, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arrays, options


@lru_cache(maxsize=256)
def _program(primitive: Primitive, params: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(partial(primitive.bind, **dict(params)))


def _compiled(primitive: Primitive, *arrays: Array, **params: Any) -> list[Array]:
    return _program(primitive, tuple(params.items()))(*arrays)


for _primitive, _jvp, _transpose in (
    (decayed_product_p, _product_jvp, _product_transpose),
    (unit_solve_p, _solve_jvp, _solve_transpose),
):
    _primitive.multiple_results = True
    _primitive.def_impl(
        lambda *arrays, primitive=_primitive, **params: _program(primitive, tuple(params.items()))(*arrays)
    )
    _primitive.def_abstract_eval(_abstract)
    ad.primitive_jvps[_primitive] = _jvp
    ad.primitive_transposes[_primitive] = _transpose
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive)
    Operation("kernels.linear", _primitive.name, _arguments).register(_primitive)
