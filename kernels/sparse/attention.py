"""Attention over listed blocks of keys: the public function, and the way to an implementation."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kernels.attention import prepare
from kernels.dense.derivatives import flash_attention
from kernels.masks.algebra import Mask
from kernels.masks.block_table import BlockTable, split_table
from kernels.masks.positions import At
from kernels.schedule import Tiles
from kernels.shapes import Grid
from kernels.sparse import reference
from kernels.sparse.padded import in_whole_tiles


def block_sparse_attention(
    query: Float[Array, "*batch query_length heads width"],
    key: Float[Array, "*batch key_length kv_heads width"],
    value: Float[Array, "*batch key_length kv_heads value_width"],
    table: BlockTable,
    *,
    mask: Mask | None = None,
    log_gates: Float[Array, "..."] | np.ndarray | None = None,
    query_positions: Int[Array, "..."] | np.ndarray | None = None,
    key_positions: Int[Array, "..."] | np.ndarray | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str | None = None,
    tiles: Tiles | None = None,
) -> tuple[Float[Array, "*batch query_length heads value_width"], Float[Array, "*batch heads query_length"]]:
    """softmax(scale · query keyᵀ + log gates) value over the blocks of keys that a table lists, and its log-sum-exp.

    All else is as in `kernels.attention`: derivatives of any order in either mode, of the output and of the
    log-sum-exp, with respect to query, key, value and log gates; memory linear in length and in what is listed. Partial
    results over different tables combine with `kernels.merge`.

    Args:
      table: for each block of queries the blocks of keys that it reads (`kernels.masks.BlockTable`), for all alike or
        for each batch entry, head, or both.
      mask: who may read whom within what is listed.
      log_gates: a number for each entry of the table, (row_blocks, entries) or with axes ahead that broadcast to
        (*batch, heads), added to the scores of its block. Its gradient is that of the scores, summed over the block:
        by it a router learns which blocks to list.
      query_positions, key_positions: integers, where the mask is to see tokens, instead of 0, 1, 2 and so on: of shape
        (length,), (*batch, length) or (*batch, heads, length); both or neither.
      scale, softcap, implementation, tiles: as in `kernels.attention`; tiles are made to fit in blocks. Where no tile
        of "gpu" or "tpu" divides blocks, these are padded to units of 16, of 128 for keys on a TPU; with no
        implementation named such calls run as the tiled loop.

    Returns:
      The output, in the query's dtype, and the log-sum-exp of each row, float32 or wider.

    Raises:
      ValueError, TypeError: arguments that do not fit, named.
    """
    if not isinstance(table, BlockTable):
        raise TypeError(f"table must be a kernels.masks.BlockTable; got {type(table)}")
    if mask is not None and split_table(mask)[0] is not None:
        raise ValueError("mask must have no block table of its own beside `table`")
    if (query_positions is None) != (key_positions is None):
        raise ValueError("query_positions and key_positions must come together; one of them is None")
    if query_positions is not None and key_positions is not None:
        if mask is None:
            raise ValueError("query_positions and key_positions are what a mask sees; mask is None")
        mask = At(mask, query_positions, key_positions)
    whole = table if mask is None else table & mask
    problem, _ = prepare(query, key, value, whole, None, scale, softcap, None, implementation, tiles)
    if log_gates is not None:
        gates = _gates_on(problem.grid, table, log_gates)
        problem = replace(problem, bias=gates, scores=replace(problem.scores, biased=True))
    if implementation == "reference":
        output, lse = reference.attention(problem, table.on(problem.grid))
    else:
        padded, rows = in_whole_tiles(problem)
        output, lse = (rows.gathered(each, 3) for each in flash_attention(padded))
    return problem.grid.outputs(output), problem.grid.rows_of_heads(lse)


def _gates_on(
    grid: Grid, table: BlockTable, gates: Array | np.ndarray
) -> Float[Array, "#flat #kv_heads #groups 1 1 row_blocks entries 1"]:
    gates = jnp.asarray(gates)
    want = (-(-grid.rows // table.rows), table.indices.shape[-1])
    if not jnp.issubdtype(gates.dtype, jnp.floating):
        raise TypeError(f"log_gates must be floating point; got {gates.dtype}")
    if gates.shape[-2:] != want:
        raise ValueError(f"log_gates must end in {want}, one for each entry of the table; got shape {gates.shape}")
    return replace(grid, rows=want[0], columns=want[1]).scores("log_gates", gates)[:, :, :, None, None, :, :, None]
