"""The sum over pairs as a tiled loop, for any platform."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

from kernels.loop import Output, Pairs, tiled_loop, unread_to_zero
from kernels.masks.algebra import Mask
from kernels.pairwise.products import rows_by_columns
from kernels.pairwise.tiles import TileFunction
from kernels.schedule import Tiles


def pairwise_sum(
    function: TileFunction,
    operands: Sequence[Array],
    mask: Mask | None,
    *,
    outputs: Sequence[Output],
    sizes: tuple[int, int],
    axes: int,
    tiles: Tiles | None,
) -> list[Array]:
    """See `kernels.pairwise.primitive.pairwise_sum`. Row sums are kept in the loop, column sums added to in place."""
    precision = jnp.result_type(jnp.float32, *operands)
    from_state = [not output.along_columns(axes) for output in outputs]

    def initial(rows: int) -> list[Array]:
        shapes = [
            (rows if output.shape[axes] > 1 else 1, 1, *output.shape[axes + 2 :])
            for output, here in zip(outputs, from_state, strict=True)
            if here
        ]
        return [jnp.zeros(shape, precision) for shape in shapes]

    ordered = rows_by_columns(function)

    def step(pairs: Pairs, state: list[Array], *values: Array) -> tuple[list[Array], list[Array]]:
        results = ordered(pairs, *(value.astype(precision) for value in values))
        if pairs.allowed is not None:
            results = [unread_to_zero(result, pairs.allowed) for result in results]
        sums = [result for result, here in zip(results, from_state, strict=True) if here]
        added = [result for result, here in zip(results, from_state, strict=True) if not here]
        return [total + part for total, part in zip(state, sums, strict=True)], added

    return tiled_loop(step, initial, lambda state: state, operands, mask, sizes, outputs, axes=axes, tiles=tiles)
