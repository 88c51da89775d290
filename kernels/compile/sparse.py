"""Our attention over listed blocks, as what is compiled."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from kernels.compile.baselines import attention_case, gradient
from kernels.compile.case import Case
from kernels.masks.block_table import BlockTable
from kernels.masks.positions import Causal
from kernels.sparse.attention import block_sparse_attention


def forward(
    batch: int = 1,
    length: int = 2048,
    heads: int = 4,
    head_dim: int = 128,
    dtype: str = "bfloat16",
    block: int = 128,
    listed: int = 4,
    causal: bool = True,
    per_head: bool = True,
    gates: bool = False,
) -> Case:
    """`kernels.block_sparse_attention` of blocks that each read that many others, spread evenly, with gates or not."""
    blocks = length // block
    apart = jnp.arange(listed) * (blocks // listed)
    own = jnp.arange(blocks)[:, None] + (jnp.arange(heads)[:, None, None] if per_head else 0)
    indices = (own + apart) % blocks
    mask = Causal("start") if causal else None

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, log_gates: jax.Array | None = None) -> jax.Array:
        table = BlockTable(indices, rows=block, columns=block)
        return block_sparse_attention(query, key, value, table, mask=mask, log_gates=log_gates)[0]

    shape = (batch, length, heads, head_dim)
    case = attention_case(attend, shape, dtype, 4.0 * batch * length * listed * block * heads * head_dim)
    more = (jax.ShapeDtypeStruct((batch, heads, blocks, listed), jnp.float32),) if gates else ()
    return replace(case, arguments=(*case.arguments, *more))


def backward(**parameters: int | str | bool) -> Case:
    """The gradient of `forward` by all that it takes, and the forward pass it needs."""
    return gradient(forward(**parameters))  # pyright: ignore[reportArgumentType]
