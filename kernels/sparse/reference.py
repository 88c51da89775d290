"""Attention over listed blocks written to be read: dense attention, with what is not listed masked away."""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.dense import reference
from kernels.masks.block_table import BlockTable, spread
from kernels.problem import Problem


def attention(
    problem: Problem, table: BlockTable
) -> tuple[Float[Array, "flat kv_heads groups rows 1 value_width"], Float[Array, "flat kv_heads groups rows 1"]]:
    """Output and log-sum-exp of a problem whose mask has that table and whose bias, if any, is one for each entry."""
    if problem.bias is None:
        return reference.attention(problem)
    rows, columns = problem.grid.sizes
    blocks = -(-columns // table.columns)
    # Entries that do not count may hold anything.
    gates = jnp.where(table.live(blocks), problem.bias[..., 0, 0, :, :, 0], 0)
    dense = spread(table, gates, blocks)
    dense = jnp.repeat(jnp.repeat(dense, table.rows, axis=-2), table.columns, axis=-1)[..., :rows, :columns]
    return reference.attention(replace(problem, bias=dense))
