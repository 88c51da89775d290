"""Linear attention chunk by chunk, for any platform.

A run of chunks is done for one problem after the other, so that arrays are read once, in the layout they come in, and
everything else stays in the processor's cache, however long the sequence.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kernels.cut import Held
from kernels.linear.chunk import Chunk, passed_in_chunks
from kernels.schedule import Tiles
from kernels.shapes import accumulator

TILES = Tiles(64, 64)
SOLVE_TILES = Tiles(32, 32)
RUN = 16
"""Chunks in a run."""


def _over_chunks(
    name: str,
    default: Tiles,
    query: Float[Array, "*#problems length width"],
    key: Float[Array, "*#problems length width"],
    value: Float[Array, "*#problems length value_width"],
    log_decay: Float[Array, "*#problems #length"],
    *,
    reverse: bool,
    axes: int,
    sizes: tuple[int, int],
    tiles: Tiles | None,
) -> list[Array]:
    """What the method of `Chunk` of that name computes; see `kernels.linear.derivatives`."""
    step = getattr(Chunk(reverse, accumulator(query.dtype)), name)
    arrays = (query, key, value)
    problems = jnp.broadcast_shapes(*(array.shape[:axes] for array in (*arrays, log_decay)))
    length, width, features = sizes[0], query.shape[-1], value.shape[-1]
    shape = (*problems, length, features)
    if 0 in (*shape, width):
        return [jnp.zeros(shape, query.dtype)]
    precision = accumulator(query.dtype)
    chunk = min((tiles or default).rows, length)
    run = chunk * min(RUN, -(-length // chunk))
    runs = -(-length // run)
    behind = [(0, 0)] * axes + [(0, runs * run - length)]
    passed = log_decay.astype(precision)
    if log_decay.shape[-1] > 1:
        passed = jnp.pad(passed, behind)
    passed = passed_in_chunks(passed, runs * run, chunk)
    one = (1,) * axes
    # On the grid of pairwise kernels: rows, and no columns.
    whole = [jnp.pad(array, [*behind, (0, 0)])[..., None, :] for array in arrays]
    reads = [Held(array.shape, problems, one) for array in whole]
    whole = [place.hold(array) for place, array in zip(reads, whole, strict=True)]
    write = Held((*problems, runs * run, 1, features), problems, one)

    def at(number: Array, made: tuple[Array, Array]) -> tuple[Array, Array]:
        outputs, states = made
        past, which = number // math.prod(problems), number % math.prod(problems)
        problem: Sequence[Array] = jnp.unravel_index(which, problems) if problems else ()
        rows = ((runs - 1 - past if reverse else past) * run, run)
        own = [place.open(array, problem, rows) for place, array in zip(reads, whole, strict=True)]
        where = [0 if size == 1 else index for size, index in zip(passed.shape, problem, strict=False)]
        own.append(lax.dynamic_slice_in_dim(passed[tuple(where)], *rows))
        by_chunk = [array.reshape(-1, chunk, array.shape[-1]) for array in own[:-1]]

        def visit(state: Array, arrays: Sequence[Array]) -> tuple[Array, Array]:
            *inputs, passed = (array.astype(precision) for array in arrays)
            output, state = step(*inputs, passed[:, None], passed[None], passed[-1:, None], state)
            return state, output.astype(query.dtype)

        chunks = (*by_chunk, own[-1].reshape(-1, chunk))
        state, output = lax.scan(visit, states[which], chunks, reverse=reverse)
        outputs = write.close(outputs, output.reshape(*one, run, 1, features), problem, rows)
        return outputs, states.at[which].set(state)

    made = write.hold(jnp.zeros(write.shape, query.dtype))
    states = jnp.zeros((math.prod(problems), width, features), precision)
    made, _ = lax.fori_loop(0, runs * math.prod(problems), at, (made, states))
    return [write.release(made)[..., :length, 0, :]]


decayed_product = partial(_over_chunks, "decayed_product", TILES)
unit_solve = partial(_over_chunks, "unit_solve", SOLVE_TILES)
