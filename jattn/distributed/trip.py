"""A trip around the ring, and the sum over query-key pairs that is made on it.

Devices along one mesh axis form a ring. What belongs to queries stays at home; what belongs to keys travels, one hop
to the next device at each step, until every device has met every shard.

A sum over pairs of a tile function has as its derivative the sum of the tile function's derivative, and as its
transpose the sum of the transpose (`kernels.pairwise.primitive`), and so it is when the pairs meet on a trip. The sum
over a trip is a primitive for that reason: a derivative, in either mode and of any order, is another trip, at the
memory of the shards. JAX's transpose of the loop would keep all the keys that ever passed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import core, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from jattn.distributed.zigzag import ZigzagCausal
from kernels.loop import Output
from kernels.masks.algebra import Mask
from kernels.masks.arrays import Segments
from kernels.pairwise.primitive import pairwise_sum, transposed
from kernels.pairwise.tiles import Tangent, TileFunction
from kernels.schedule import Tiles
from kernels.shapes import accumulator


@dataclass(frozen=True)
class Ring:
    """The devices along a mesh axis, and whether the sequence along them is causal, in the zigzag layout."""

    axis_name: str
    devices: int
    causal: bool

    def hop(self, arrays: Any) -> Any:
        """What the device before holds; this one's goes to the device behind."""
        return lax.ppermute(arrays, self.axis_name, [(d, (d + 1) % self.devices) for d in range(self.devices)])

    def trip(self, step: Callable[[Array | int, Any, Any], Any], carry: Any, travellers: Any) -> Any:
        """The carry after `step(number, carry, travellers)` for every shard of the travellers, the own one first.

        The next shard is on its way while a step computes: neither needs the other.
        """

        def visit(held: tuple[Any, Any], number: Array) -> tuple[tuple[Any, Any], None]:
            carry, here = held
            arriving = self.hop(here)
            return (step(number, carry, here), arriving), None

        (carry, last), _ = lax.scan(visit, (carry, travellers), jnp.arange(self.devices - 1))
        return step(self.devices - 1, carry, last)

    def mask(
        self, number: Array | int, home: Sequence[Array], here: Sequence[Array], sizes: tuple[int, int], axes: int
    ) -> Mask | None:
        """Who may read whom at a step, on the grid; `home` and `here` are the segments of queries and keys, if any."""
        mask = Segments(home[0], here[0]) if home else None
        if not self.causal:
            return mask
        device = lax.axis_index(self.axis_name)
        other = (device - number) % self.devices
        query_device, key_device = (jnp.reshape(index, (1,) * (axes + 2)) for index in (device, other))
        causal = ZigzagCausal(query_device, key_device, self.devices, sizes[0] // 2)
        return causal if mask is None else mask & causal


@dataclass(frozen=True)
class Sum:
    """The sum of a tile function over the pairs of all rows at home and all columns of the ring.

    Attributes:
      function: what a tile adds.
      travels: for each of its operands, whether it varies along columns; else it varies along rows.
      outputs: their shapes on the grid of one shard, and dtypes.
      returns: for each of them, whether it varies along columns.
      sizes: rows and columns of one shard.
      axes: how many problem axes.
    """

    ring: Ring
    function: TileFunction
    travels: tuple[bool, ...]
    outputs: tuple[Output, ...]
    returns: tuple[bool, ...]
    sizes: tuple[int, int]
    axes: int
    tiles: Tiles | None

    def split(self, arrays: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Operands, and the segments of queries and keys behind them."""
        count = len(self.travels)
        return list(arrays[:count]), list(arrays[count:])


ring_sum_p = Primitive("ring_sum")
ring_sum_p.multiple_results = True


def ring_sum(call: Sum, operands: Sequence[Array], segments: Sequence[Array]) -> list[Array]:
    """The sums, each where its rows or columns are at home.

    Sums over rows travel along with their columns, in float32 or wider; sums over columns grow at home.

    Args:
      operands: floating-point arrays on the grid (see `pairwise_sum`).
      segments: of queries and of keys, on the grid, or nothing.
    """
    return ring_sum_p.bind(*operands, *segments, call=call)


def _sum(*arrays: Array, call: Sum) -> list[Array]:
    operands, segments = call.split(arrays)
    stays = [operand for operand, travels in zip(operands, call.travels, strict=True) if not travels]
    going = [operand for operand, travels in zip(operands, call.travels, strict=True) if travels]
    wide = [Output(output.shape, accumulator(output.dtype)) for output in call.outputs]

    def step(number: Array | int, totals: list[Array], here: tuple[list[Array], list[Array]]) -> list[Array]:
        at_home, passing = iter(stays), iter(here[0])
        parts = pairwise_sum(
            call.function,
            [next(passing) if travels else next(at_home) for travels in call.travels],
            call.ring.mask(number, segments[:1], here[1], call.sizes, call.axes),
            wide,
            sizes=call.sizes,
            axes=call.axes,
            tiles=call.tiles,
        )
        # Sums of the columns come one hop behind the columns, so that they too travel while the step computes.
        return [total + part for total, part in zip(_follow(call, totals), parts, strict=True)]

    totals = call.ring.trip(step, [jnp.zeros(o.shape, o.dtype) for o in wide], (going, segments[1:]))
    # The columns of the last step come from the device behind; one more hop brings their sums there.
    totals = _follow(call, totals)
    return [total.astype(output.dtype) for total, output in zip(totals, call.outputs, strict=True)]


def _follow(call: Sum, totals: list[Array]) -> list[Array]:
    moved = iter(call.ring.hop([total for total, returns in zip(totals, call.returns, strict=True) if returns]))
    return [next(moved) if returns else total for total, returns in zip(totals, call.returns, strict=True)]


def _abstract(*arrays: Any, call: Sum) -> list[core.ShapedArray]:
    return [core.ShapedArray(output.shape, output.dtype) for output in call.outputs]


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], call: Sum) -> tuple[list[Array], list[Any]]:
    operands, segments = call.split(primals)
    changes, _ = call.split(tangents)
    moved = tuple(not isinstance(change, ad.Zero) for change in changes)
    results = ring_sum_p.bind(*primals, call=call)
    if not any(moved):
        return results, [jnp.zeros_like(result) for result in results]
    moving = [change for change in changes if not isinstance(change, ad.Zero)]
    travels = (*call.travels, *(travels for travels, moves in zip(call.travels, moved, strict=True) if moves))
    tangent = replace(call, function=Tangent(call.function, moved), travels=travels)
    return results, ring_sum(tangent, [*operands, *moving], segments)


def _transpose(cotangents: Sequence[Any], *arrays: Any, call: Sum) -> list[Any]:
    operands, segments = call.split(arrays)
    linear = [operand.aval if ad.is_undefined_primal(operand) else None for operand in operands]
    pulled = tuple(not isinstance(cotangent, ad.Zero) for cotangent in cotangents)
    if not any(pulled):
        return [None if aval is None else ad.Zero(aval) for aval in linear] + [None] * len(segments)
    known = [operand for operand, aval in zip(operands, linear, strict=True) if aval is None]
    pulls = [cotangent for cotangent, pulls in zip(cotangents, pulled, strict=True) if pulls]
    shapes = [None if aval is None else aval.shape for aval in linear]
    travels = [travels for travels, aval in zip(call.travels, linear, strict=True) if aval is None]
    travels += [returns for returns, pulls in zip(call.returns, pulled, strict=True) if pulls]
    transpose = replace(
        call,
        function=transposed(call.function, shapes, pulled, call.sizes, call.axes),
        travels=tuple(travels),
        outputs=tuple(Output(aval.shape, aval.dtype) for aval in linear if aval is not None),
        returns=tuple(travels for travels, aval in zip(call.travels, linear, strict=True) if aval is not None),
    )
    results = iter(ring_sum(transpose, [*known, *pulls], segments))
    return [None if aval is None else next(results) for aval in linear] + [None] * len(segments)


def _batch(arrays: Sequence[Any], dimensions: Sequence[Any], call: Sum) -> tuple[list[Array], list[int]]:
    size = next(array.shape[axis] for array, axis in zip(arrays, dimensions, strict=True) if axis is not None)
    # What is not mapped stays one, and is summed over where its transpose is taken.
    arrays = [
        array[None] if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, dimensions, strict=True)
    ]
    outputs = tuple(Output((size, *output.shape), output.dtype) for output in call.outputs)
    results = ring_sum_p.bind(*arrays, call=replace(call, outputs=outputs, axes=call.axes + 1))
    return results, [0] * len(results)


ring_sum_p.def_abstract_eval(_abstract)
ad.primitive_jvps[ring_sum_p] = _jvp
ad.primitive_transposes[ring_sum_p] = _transpose
batching.primitive_batchers[ring_sum_p] = _batch
mlir.register_lowering(ring_sum_p, mlir.lower_fun(_sum, multiple_results=True))
