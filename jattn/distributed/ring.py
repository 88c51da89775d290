"""Attention over a sequence that is spread over devices: keys and values travel around the ring (Liu et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jattn.distributed.trip import Ring, Sum, ring_sum
from jattn.distributed.zigzag import unzigzag, zigzag
from kernels.attention import prepare
from kernels.dense.derivatives import flash_attention
from kernels.loop import Output
from kernels.masks.arrays import Segments
from kernels.merge import merge
from kernels.pairwise.tiles import Scores, Tangent, WeightedSums
from kernels.problem import Problem
from kernels.schedule import Tiles
from kernels.shapes import Grid, accumulator


def ring_attention(
    query: Float[Array, "*batch query_length heads width"],
    key: Float[Array, "*batch key_length kv_heads width"],
    value: Float[Array, "*batch key_length kv_heads value_width"],
    *,
    axis_name: str,
    causal: bool = False,
    segment_ids: Array | np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    tiles: Tiles | None = None,
) -> Any:
    """`kernels.attention` of all shards along a mesh axis, to be called on each device's shard within `jax.shard_map`.

    Memory is linear in the length of a shard, and so it is in derivatives: reverse and forward mode, in any order and
    combination, with respect to query, key and value. Each is one more trip around the ring, n - 1 hops of the keys and
    values for n devices, in reverse with the float32 sums of their gradients one hop behind them. Outputs of single
    steps have the query's dtype; what combines them is float32 or wider.

    Args:
      axis_name: the mesh axis along which the sequence is cut. The shard_map around must have `check_vma=False`.
      causal: a query reads the keys up to its own position. Shards are then in the layout of `zigzag`, in which all
        devices do the same work at the same time; else their order does not matter.
      segment_ids: integers (*batch, length) of this shard, also with 1 for a batch axis, or (length,): a query reads
        the keys of its own segment (`kernels.masks.Segments`).
      scale, softcap, tiles: see `kernels.attention`.
      return_lse: whether to return the log-sum-exp of each row of scores too, over all keys.

    Returns:
      The shard of the output (*batch, query_length, heads, value_width); with `return_lse` also that of the
      log-sum-exp (*batch, heads, query_length), differentiable, in float32 or wider.

    Raises:
      ValueError, TypeError: arguments that do not fit, named.
    """
    try:
        devices = jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(f"axis_name must be an axis of the jax.shard_map around; got {axis_name!r}") from None
    if _checked(axis_name):
        raise ValueError("query, key and value must be shards of a jax.shard_map with check_vma=False; got True")
    segments = None
    if segment_ids is not None:
        if query.shape[-3] != key.shape[-3]:
            raise ValueError(
                f"segment_ids need as many queries as keys on a device; got {query.shape[-3]} and {key.shape[-3]}"
            )
        segments = Segments(segment_ids)
    problem, _ = prepare(query, key, value, segments, None, scale, softcap, None, None, tiles)
    rows, columns = problem.grid.sizes
    if causal and (rows != columns or rows % 2):
        raise ValueError(
            "causal needs as many queries as keys on a device, two chunks of them (see zigzag); got query length "
            f"{rows} and key length {columns}"
        )
    ids = [] if problem.mask is None else jax.tree.leaves(problem.mask)
    ring = Ring(axis_name, devices, causal)
    call = _Call(ring, problem.grid, problem.scores, problem.tiles)
    output, lse = _attention(call, problem.query, problem.key, problem.value, ids)
    output = problem.grid.outputs(output.astype(query.dtype))
    return (output, problem.grid.rows_of_heads(lse)) if return_lse else output


def _checked(axis_name: str) -> bool:
    """Whether the shard_map around keeps account of what varies along which axis; kernels give none."""
    index = jax.typeof(jax.lax.axis_index(axis_name))
    account = getattr(index, "manual_axis_type", None)
    return bool(getattr(index, "vma", None) or getattr(account, "varying", None))


@dataclass(frozen=True)
class _Call:
    """What is static of one call: the ring, the grid of one shard, how scores are made, and how to compute."""

    ring: Ring
    grid: Grid
    scores: Scores
    tiles: Tiles | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attention(call: _Call, query: Array, key: Array, value: Array, ids: Sequence[Array]) -> tuple[Array, Array]:
    """Output and log-sum-exp on the grid, both in float32 or wider; `ids` are of queries and keys, or nothing."""
    grid, precision = call.grid, accumulator(query.dtype)

    def step(number: Array | int, whole: tuple[Array, Array], here: Any) -> tuple[Array, Array]:
        key, value, passing = here
        mask = call.ring.mask(number, ids[:1], passing, grid.sizes, 3)
        part, lse = flash_attention(Problem(query, key, value, None, mask, grid, call.scores, call.tiles))
        # For `merge` every problem of the grid is a batch entry of one head.
        outputs, lses = jnp.stack([whole[0], part.astype(precision)]), jnp.stack([whole[1], lse])
        output, lse = merge(outputs, lses.swapaxes(-1, -2))
        return output, lse.swapaxes(-1, -2)

    rows = (*grid.problems, grid.rows, 1)
    nothing = (jnp.zeros((*rows, value.shape[-1]), precision), jnp.full(rows, -jnp.inf, precision))
    return call.ring.trip(step, nothing, (key, value, ids[1:]))


@partial(_attention.defjvp, symbolic_zeros=True)
def _jvp(call: _Call, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """The rule of `kernels.dense.derivatives`, with the sum over pairs made on a trip."""
    query, key, value, ids = primals
    output, lse = _attention(call, query, key, value, ids)
    changes = [change for change in tangents[:3] if not isinstance(change, SymbolicZero)]
    if not changes:
        return (output, lse), (jnp.zeros_like(output), jnp.zeros_like(lse))
    moved = tuple(not isinstance(change, SymbolicZero) for change in tangents[:3])
    # exp(score - inf) = 0: a row that reads nothing has no weights, and no derivative.
    divisor = jnp.where(lse == -jnp.inf, jnp.inf, lse)
    travels = (False, True, True)
    total = Sum(
        call.ring,
        Tangent(WeightedSums(call.scores), (*moved, False)),
        (*travels, False, *(travels for travels, moves in zip(travels, moved, strict=True) if moves)),
        (Output(output.shape, output.dtype), Output(lse.shape, lse.dtype)),
        (False, False),
        call.grid.sizes,
        3,
        call.tiles,
    )
    summed, change_of_lse = ring_sum(total, [query, key, value, divisor, *changes], ids)
    return (output, lse), (summed - change_of_lse[..., None] * output, change_of_lse)


def sequence_parallel_attention(
    query: Float[Array, "*batch query_length heads width"],
    key: Float[Array, "*batch key_length kv_heads width"],
    value: Float[Array, "*batch key_length kv_heads value_width"],
    *,
    mesh: Mesh,
    axis_name: str,
    causal: bool = False,
    arranged: bool = False,
    segment_ids: Array | np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    batch_axis: str | None = None,
    heads_axis: str | None = None,
    tiles: Tiles | None = None,
) -> Any:
    """`kernels.attention` of global arrays with the sequence cut along a mesh axis: `ring_attention` on every device.

    To be called under `jax.jit`, as all that should run as one program on many devices.

    Args:
      mesh: the devices, its axes of type Auto. Along axes that are not named here they repeat the same work.
      axis_name: the mesh axis along which the sequence is cut, into equal parts.
      causal: a query reads the keys up to its own position; twice the axis's size must divide the length.
      arranged: with `causal`, whether the arrays already are in the layout of `zigzag`, and results are to stay so.
        Otherwise they are brought there and back at every call, which moves half of them between devices: a model
        does it once, to its tokens and their positions.
      segment_ids: integers (*batch, length), also with 1 for a batch axis, or (length,), in the order of the arrays.
      batch_axis, heads_axis: mesh axes along which the first batch axis and the heads of queries and keys are cut.
      scale, softcap, return_lse, tiles: see `ring_attention`.

    Returns:
      The output (*batch, query_length, heads, value_width), cut as the query is; with `return_lse` also the
      log-sum-exp (*batch, heads, query_length).

    Raises:
      ValueError, TypeError: arguments that do not fit, named.
    """
    arrays = {"query": query, "key": key, "value": value}
    for name, axis in (("axis_name", axis_name), ("batch_axis", batch_axis), ("heads_axis", heads_axis)):
        if axis not in (*mesh.axis_names, *(() if name == "axis_name" else (None,))):
            raise ValueError(f"{name} must be among the mesh's axes {mesh.axis_names}; got {axis!r}")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"mesh must have axes of type Auto (jax.make_mesh's axis_types); got {mesh.axis_types}. In a shard_map of "
            "your own, ring_attention runs on any mesh"
        )
    if arranged and not causal:
        raise ValueError("arranged needs causal; without it every layout is good")
    devices = mesh.shape[axis_name]
    for name, array in arrays.items():
        if array.ndim < (3 if batch_axis is None else 4):
            want = "length, heads, width" if batch_axis is None else "batch, ..., length, heads, width"
            raise ValueError(f"{name} must have shape ({want}); got {array.shape}")
        for of, at, axis, parts in (
            ("length", -3, axis_name, 2 * devices if causal else devices),
            ("heads", -2, heads_axis, mesh.shape.get(heads_axis, 1)),
            ("first batch axis", 0, batch_axis, mesh.shape.get(batch_axis, 1)),
        ):
            if array.shape[at] % parts:
                raise ValueError(
                    f"{name}'s {of} must be a multiple of {parts} to be cut along {axis!r}; got {array.shape}"
                )
    batch = [batch_axis if axis == 0 else None for axis in range(query.ndim - 3)]
    inside = PartitionSpec(*batch, axis_name, heads_axis, None)
    whole = [*arrays.values()]
    specs = [inside] * 3
    if segment_ids is not None:
        ids = jnp.asarray(segment_ids)
        if not 1 <= ids.ndim <= len(batch) + 1 or ids.shape[-1] != query.shape[-3]:
            want = (*query.shape[:-3], query.shape[-3])
            raise ValueError(f"segment_ids must be of shape {want}, or ({want[-1]},); got {ids.shape}")
        cut = batch[len(batch) + 1 - ids.ndim :]
        whole.append(ids)
        specs.append(PartitionSpec(*(None if n == 1 else a for n, a in zip(ids.shape, cut, strict=False)), axis_name))
    places = [array.ndim - 3 for array in whole[:3]] + [array.ndim - 1 for array in whole[3:]]
    if causal and not arranged:
        whole = [zigzag(array, devices, axis) for array, axis in zip(whole, places, strict=True)]

    def shard(query: Array, key: Array, value: Array, *ids: Array) -> tuple[Array, Array]:
        return ring_attention(
            query,
            key,
            value,
            axis_name=axis_name,
            causal=causal,
            segment_ids=ids[0] if ids else None,
            scale=scale,
            softcap=softcap,
            return_lse=True,
            tiles=tiles,
        )

    lse_spec = PartitionSpec(*batch, heads_axis, axis_name)
    output, lse = jax.shard_map(shard, mesh=mesh, in_specs=tuple(specs), out_specs=(inside, lse_spec), check_vma=False)(
        *whole
    )
    if causal and not arranged:
        output, lse = unzigzag(output, devices, output.ndim - 3), unzigzag(lse, devices, lse.ndim - 1)
        output, lse = (
            jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))
            for array, spec in ((output, inside), (lse, lse_spec))
        )
    return (output, lse) if return_lse else output
