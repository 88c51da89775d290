"""Linear attention in Pallas on Triton, for NVIDIA GPUs.

A program goes over the chunks of a problem, with its state in registers; values are split by features to leave it room.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from kernels.gpu_blocks import power
from kernels.linear.chunk import Chunk
from kernels.linear.padded import Padded
from kernels.schedule import Tiles

CHUNK = 32
WIDEST = 256
HELD = {2: 4096, 4: 2048}
"""Numbers that a program holds of its state, and of a chunk of keys, by bytes of a number of the arrays."""


def supports(query: Any, key: Any, value: Any, log_decay: Any, **_: Any) -> str | None:
    """Why the functions here cannot take these, or None; of arrays or their shapes."""
    if query.dtype == jnp.float64:
        return "float64"
    return f"{query.shape[-1]} features, more than {WIDEST}" if query.shape[-1] > WIDEST else None


def _kernel(
    name: str,
    query: Float[Array, "*#problems length width"],
    key: Float[Array, "*#problems length width"],
    value: Float[Array, "*#problems length value_width"],
    log_decay: Float[Array, "*#problems #length"],
    *,
    reverse: bool,
    axes: int,
    sizes: tuple[int, int],
    tiles: Tiles | None,
    interpret: Any = False,
) -> list[Array]:
    """What the method of `Chunk` of that name computes; see `kernels.linear.derivatives`."""
    held = max(16, HELD[query.dtype.itemsize] // power(query.shape[-1]))
    chunk = power(min(tiles.rows if tiles else min(CHUNK, held), max(sizes[0], 1)))
    arrays = Padded.of((query, key, value), log_decay, axes, chunk, features=power)
    if arrays.empty:
        return [jnp.zeros(arrays.result, query.dtype)]
    narrow = query.dtype.itemsize == 2
    step = getattr(Chunk(reverse, query.dtype, lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST), name)
    chunks = arrays.length // chunk
    width, features = (arrays.arrays[number].shape[-1] for number in (0, 2))
    part = min(features, held)

    def kernel(query_ref: Any, key_ref: Any, value_ref: Any, passed_ref: Any, output_ref: Any) -> None:
        def visit(number: Any, state: Array) -> Array:
            first = (chunks - 1 - number if reverse else number) * chunk
            here = pl.ds(first, chunk)
            passed = passed_ref[here]
            query, key, value = (ref[here, :].astype(jnp.float32) for ref in (query_ref, key_ref, value_ref))
            whole = passed_ref[first + chunk - 1]
            output, state = step(query, key, value, passed[:, None], passed[None], whole, state)
            output_ref[here, :] = output.astype(output_ref.dtype)
            return state

        lax.fori_loop(0, chunks, visit, jnp.zeros((width, part), jnp.float32))

    def spec(shape: tuple[int, ...], block: tuple[int, ...], by_part: bool = False) -> pl.BlockSpec:
        def index(problem: Any, number: Any) -> tuple[Any, ...]:
            return (*arrays.place(shape, problem), *(0 for _ in block[1:]), number if by_part else 0)

        return pl.BlockSpec((*(None for _ in range(axes)), *block), index)

    output = jax.ShapeDtypeStruct((*arrays.problems, arrays.length, features), query.dtype)
    made = pl.pallas_call(
        kernel,
        out_shape=output,
        grid=(math.prod(arrays.problems), features // part),
        in_specs=[
            spec(arrays.arrays[0].shape, (arrays.length, width)),
            spec(arrays.arrays[1].shape, (arrays.length, width)),
            spec(arrays.arrays[2].shape, (arrays.length, part), by_part=True),
            spec(arrays.passed.shape, (arrays.length,)),
        ],
        out_specs=spec(output.shape, (arrays.length, part), by_part=True),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name=name,
    )(*arrays.arrays, arrays.passed)
    return [made[..., : sizes[0], : value.shape[-1]]]


decayed_product = partial(_kernel, "decayed_product")
unit_solve = partial(_kernel, "unit_solve")
