"""Our attention, as what is compiled: the platform's own kernels, as a user's program has them."""

import jax

from kernels.attention import attention
from kernels.compile.baselines import attention_case, gradient, matmul_flops
from kernels.compile.case import Case
from kernels.masks.positions import Causal
from kernels.schedule import Tiles


def forward(
    batch: int = 1,
    length: int = 2048,
    heads: int = 4,
    head_dim: int = 128,
    dtype: str = "bfloat16",
    causal: bool = True,
    rows: int | None = None,
    columns: int | None = None,
) -> Case:
    """`kernels.attention`, in its default tiles or in tiles of that many rows and columns."""
    tiles = None if rows is None or columns is None else Tiles(rows, columns)
    mask = Causal("start") if causal else None

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return attention(query, key, value, mask=mask, tiles=tiles)

    shape = (batch, length, heads, head_dim)
    return attention_case(attend, shape, dtype, matmul_flops(batch, length, heads, head_dim, causal))


def backward(**parameters: int | str | bool) -> Case:
    """The gradient of `forward` by query, key and value, and the forward pass it needs."""
    return gradient(forward(**parameters))  # pyright: ignore[reportArgumentType]
