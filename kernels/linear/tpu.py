"""Linear attention in Pallas for TPUs: the chunks of a problem one after the other, its state in vector memory."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.linear.chunk import Chunk
from kernels.linear.padded import Padded
from kernels.schedule import Tiles
from kernels.tpu_layout import LANES, round_up, to_column

CHUNK = 128
WIDEST = 512


def supports(query: Any, key: Any, value: Any, log_decay: Any, **_: Any) -> str | None:
    """Why the functions here cannot take these, or None; of arrays or their shapes."""
    if query.dtype == jnp.float64:
        return "float64"
    widest = max(query.shape[-1], value.shape[-1])
    return f"{widest} features, more than {WIDEST}" if widest > WIDEST else None


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
    chunk = round_up(min(tiles.rows if tiles else CHUNK, sizes[0]), LANES)
    narrow = query.dtype == jnp.bfloat16
    dtype = query.dtype if narrow else jnp.float32
    arrays = Padded.of((query, key, value), log_decay, axes, chunk)
    if arrays.empty:
        return [jnp.zeros(arrays.result, query.dtype)]
    # The hardware rounds operands of 32 bits to bfloat16 if it may.
    step = getattr(Chunk(reverse, jnp.float32, lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST), name)
    chunks = arrays.length // chunk
    width, features = query.shape[-1], value.shape[-1]

    def kernel(query_ref: Any, key_ref: Any, value_ref: Any, passed_ref: Any, output_ref: Any, state_ref: Any) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            state_ref[...] = jnp.zeros(state_ref.shape, jnp.float32)

        columns = passed_ref[...]
        rows = to_column(columns)
        query, key, value = (ref[...].astype(jnp.float32) for ref in (query_ref, key_ref, value_ref))
        output, state = step(query, key, value, rows, columns, rows[-1:], state_ref[...])
        output_ref[...] = output.astype(output_ref.dtype)
        state_ref[...] = state

    def spec(shape: tuple[int, ...], block: tuple[int | None, ...]) -> pl.BlockSpec:
        def index(problem: Any, number: Any) -> tuple[Any, ...]:
            number = chunks - 1 - number if reverse else number
            return (*arrays.place(shape, problem), number, *(0 for _ in block[1:]))

        return pl.BlockSpec((*(None for _ in range(axes)), *block), index)

    passed = arrays.passed.reshape(*arrays.passed.shape[:-1], chunks, 1, chunk)
    inputs = [array.astype(dtype) for array in arrays.arrays]
    output = jax.ShapeDtypeStruct((*arrays.problems, arrays.length, features), dtype)
    made = pl.pallas_call(
        kernel,
        out_shape=output,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(math.prod(arrays.problems), chunks),
            in_specs=[
                *(spec(array.shape, (chunk, array.shape[-1])) for array in inputs),
                spec(passed.shape, (None, 1, chunk)),
            ],
            out_specs=spec(output.shape, (chunk, features)),
            scratch_shapes=[pltpu.VMEM((width, features), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name=name,
    )(*inputs, passed)
    return [made[..., : sizes[0], :].astype(query.dtype)]


decayed_product = partial(_kernel, "decayed_product")
unit_solve = partial(_kernel, "unit_solve")
