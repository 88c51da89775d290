"""Flash attention as a tiled loop, for any platform."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.loop import Output, Pairs, tiled_loop
from kernels.masks.algebra import Mask
from kernels.pairwise.tiles import Scores, matmul
from kernels.schedule import Tiles
from kernels.shapes import accumulator


def attention(
    query: Float[Array, "... rows 1 width"],
    key: Float[Array, "... 1 columns width"],
    value: Float[Array, "... 1 columns value_width"],
    *bias: Float[Array, "..."],
    mask: Mask | None,
    scores: Scores,
    sizes: tuple[int, int],
    axes: int,
    tiles: Tiles | None,
) -> list[Array]:
    """Output and log-sum-exp, by the online softmax (Milakov & Gimelshein 2018; Dao 2023, algorithm 1)."""
    precision = accumulator(query.dtype)
    arrays = (query, key, value, *bias, *jax.tree.leaves(mask))
    problems = jnp.broadcast_shapes(*(array.shape[:axes] for array in arrays))
    outputs = [
        Output((*problems, sizes[0], 1, value.shape[-1]), query.dtype),
        Output((*problems, sizes[0], 1), precision),
    ]
    lowest = jnp.finfo(precision).min

    def initial(rows: int) -> tuple[Array, Array, Array]:
        highest = jnp.full((rows, 1), lowest, precision)
        return highest, jnp.zeros((rows, 1), precision), jnp.zeros((rows, value.shape[-1]), precision)

    def step(
        pairs: Pairs, state: tuple[Array, Array, Array], *operands: Array
    ) -> tuple[tuple[Array, ...], list[Array]]:
        highest, total, summed = state
        query, key, value, *bias = (operand.astype(precision) for operand in operands)
        tile = scores(pairs, query, key, *bias)
        # Finite even for rows without a pair so far, so that exp(-inf - higher) = 0.
        higher = jnp.maximum(highest, tile.max(axis=1, keepdims=True))
        weights, shrink = jnp.exp(tile - higher), jnp.exp(highest - higher)
        total = total * shrink + weights.sum(axis=1, keepdims=True)
        return (higher, total, summed * shrink + matmul(weights, value[0], 1, 0)), []

    def finish(state: tuple[Array, Array, Array]) -> list[Array]:
        highest, total, summed = state
        # A row without a pair gives 0, even beside keys that are not numbers; log 0 = -inf is its log-sum-exp.
        output = jnp.where(total == 0, 0, summed / total)
        return [output[:, None], highest + jnp.log(total)]

    operands = [query, key, value, *bias]
    results = tiled_loop(step, initial, finish, operands, mask, sizes, outputs, axes=axes, tiles=tiles)
    return results if 0 not in sizes else [results[0], jnp.full_like(results[1], -jnp.inf)]
