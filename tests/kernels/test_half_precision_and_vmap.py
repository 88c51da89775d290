"""Sparse and linear attention in half precision, and mapped, on every implementation.

Half precision is held to float64 of the same rounded numbers: four roundings of the largest number for values, eight
for gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_block_sparse
import test_causal_linear
from test_block_sparse import QUICKLY, random_table
from test_causal_linear import Problem

from kernels import block_sparse_attention, causal_linear_attention, masks

IMPLEMENTATIONS = ["xla", "gpu", "tpu"]
"""The latter two in Pallas' interpreter."""
BLOCK = {"xla": 16, "gpu": 16, "tpu": 128}


def sparse(implementation: str) -> tuple[dict[str, Any], masks.BlockTable]:
    block = BLOCK[implementation]
    table = random_table(4, (2, 3, 2), 3, (block, block))
    length = 3 * block - 5
    arrays = test_block_sparse.arrays(length, length, (2, 3, 2), heads=2, kv_heads=1, batch=1)
    return jax.tree.map(lambda each: each.astype(jnp.float32), arrays), table


def linear(delta: bool) -> dict[str, Any]:
    return Problem(batch=1, length=40, width=16, value_width=16, delta=delta).arrays(np.float32)


def sparse_attention(implementation: str, table: masks.BlockTable) -> Callable[..., Any]:
    def attend(at: dict[str, Any]) -> Any:
        given = at["query"], at["key"], at["value"], table
        return block_sparse_attention(*given, log_gates=at["log_gates"], implementation=implementation)[0]

    return attend


def linear_attention(implementation: str) -> Callable[..., Any]:
    chunk = None if implementation == "reference" else 16
    return lambda at: causal_linear_attention(**at, chunk=chunk, implementation=implementation)


def both(attend: Callable[..., Any], at: Any) -> Any:
    """The output, and the gradient of the sum of its sines."""

    def total(at: Any) -> Any:
        output = attend(at)
        return jnp.sin(output.astype(jnp.promote_types(output.dtype, jnp.float32))).sum(), output

    (_, output), slope = jax.value_and_grad(total, has_aux=True)(at)
    return output, slope


quickly = partial(jax.jit, compiler_options=QUICKLY)


def near(have: Any, want: Any, tolerance: float) -> None:
    """Relative to the largest number of each array, or to 1."""
    have, want = (jax.tree.map(lambda each: np.asarray(each, np.float64), each) for each in (have, want))
    for one, other in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        assert np.abs(one - other).max() <= tolerance * max(np.abs(other).max(), 1)


def held(have: Any, want: Any, dtype: Any) -> None:
    for of_have, of_want, roundings in zip(have, want, (4, 8), strict=True):
        near(of_have, of_want, roundings * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_listed_blocks_in_half_precision(implementation: str, dtype: Any) -> None:
    at, table = sparse(implementation)
    half = {name: each if name == "log_gates" else each.astype(dtype) for name, each in at.items()}
    have = quickly(partial(both, sparse_attention(implementation, table)))(half)
    assert have[0].dtype == dtype
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda each: jnp.asarray(np.asarray(each, np.float64)), half)
        truth = partial(both, lambda at: test_block_sparse.by_definition(at, table, None)[0])
        want = quickly(truth)(exact)
    held(have, want, dtype)


@pytest.mark.parametrize(("delta", "dtype"), [(False, jnp.float16), (True, jnp.bfloat16), (True, jnp.float16)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_linear_attention_in_half_precision(implementation: str, delta: bool, dtype: Any) -> None:
    half = jax.tree.map(lambda each: each.astype(dtype), linear(delta))
    have = quickly(partial(both, linear_attention(implementation)))(half)
    assert have[0].dtype == dtype
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda each: jnp.asarray(np.asarray(each, np.float64)), half)
        want = quickly(partial(both, linear_attention("reference")))(exact)
        by_token, _, _ = test_causal_linear.recurrence(**exact)
        np.testing.assert_allclose(want[0], by_token, rtol=1e-12, atol=1e-12)
    held(have, want, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_listed_blocks_are_mapped(implementation: str) -> None:
    """vmap of values and gradients, over queries, gates and tables at once, with keys shared by all."""
    at, table = sparse(implementation)
    indices = jnp.stack([table.indices, table.indices[..., ::-1]])
    queries, gates = (jnp.stack([at[name], at[name] / 2]) for name in ("query", "log_gates"))

    def one(query: jax.Array, gates: jax.Array, indices: jax.Array) -> Any:
        listed = masks.BlockTable(indices, table.counts, rows=table.rows, columns=table.columns)
        return both(sparse_attention(implementation, listed), at | {"query": query, "log_gates": gates})

    mapped = quickly(jax.vmap(one))(queries, gates, indices)
    stacked = jax.tree.map(lambda *each: np.stack(each), *map(quickly(one), queries, gates, indices))
    near(mapped, stacked, 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_linear_attention_is_mapped(implementation: str) -> None:
    """vmap of values and gradients, over queries and decays, with keys and values shared by all."""
    at = linear(delta=True)
    queries, decays = (jnp.stack([at[name], at[name] / 2]) for name in ("query", "log_decay"))

    def one(query: jax.Array, decay: jax.Array) -> Any:
        return both(linear_attention(implementation), at | {"query": query, "log_decay": decay})

    mapped = quickly(jax.vmap(one))(queries, decays)
    stacked = jax.tree.map(lambda *each: np.stack(each), *map(quickly(one), queries, decays))
    near(mapped, stacked, 1e-5)
