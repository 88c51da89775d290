"""Attention over listed blocks: against dense attention in float64 with everything else masked away."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import block_sparse_attention, masks
from kernels.explain import _OPERATIONS, _calls
from kernels.pairwise import tpu
from kernels.schedule import Tiles

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
POSITIONS = {"queries": np.random.default_rng(5).permutation(40), "keys": np.random.default_rng(6).integers(0, 40, 53)}


def arrays(
    rows: int, columns: int, gates: tuple[int, ...], *, heads: int = 4, kv_heads: int = 2, batch: int = 2
) -> dict[str, Any]:
    rng = np.random.default_rng(rows * columns)
    shapes = {
        "query": (batch, rows, heads, 8),
        "key": (batch, columns, kv_heads, 8),
        "value": (batch, columns, kv_heads, 5),
        "log_gates": gates,
    }
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def random_table(seed: int, shape: tuple[int, ...], column_blocks: int, blocks: tuple[int, int]) -> masks.BlockTable:
    """With repetitions, empty lists, and entries that are no block."""
    rng = np.random.default_rng(seed)
    indices = rng.integers(-1, column_blocks + 1, shape)
    return masks.BlockTable(indices, rng.integers(0, shape[-1] + 1, shape[:-1]), rows=blocks[0], columns=blocks[1])


def by_definition(
    arrays: dict[str, Any], table: masks.BlockTable, allowed: np.ndarray | None
) -> tuple[jax.Array, jax.Array]:
    """Every pair at once, block by block of the lists."""
    query, key, value, gates = arrays["query"], arrays["key"], arrays["value"], arrays["log_gates"]
    (batch, rows, heads, width), columns = query.shape, key.shape[1]
    key, value = (jnp.repeat(each, heads // each.shape[2], axis=2) for each in (key, value))
    entries = table.indices.shape[-1]
    of_all = partial(np.broadcast_to, shape=(batch, heads, *table.indices.shape[-2:]))
    indices, gates = of_all(table.indices), jnp.broadcast_to(gates, (batch, heads, *gates.shape[-2:]))
    counts = np.broadcast_to(table.counts[..., None], (*table.counts.shape, entries))
    counts = np.broadcast_to(counts, indices.shape)[..., 0]
    picked = []
    for b, h, i in np.ndindex(batch, heads, rows):
        block, bias = i // table.rows, [-jnp.inf] * columns
        seen = set()
        for entry in range(counts[b, h, block]):
            listed = int(indices[b, h, block, entry])
            if listed not in seen:
                for j in range(max(listed, 0) * table.columns, min((listed + 1) * table.columns, columns)):
                    if allowed is None or allowed[i, j]:
                        bias[j] = (entry, block)
            seen.add(listed)
        picked.append([(-1, 0) if isinstance(found, float) else found for found in bias])
    which = np.array(picked).reshape(batch, heads, rows, columns, 2)
    bias = jnp.take_along_axis(
        gates.reshape(batch, heads, -1), (which[..., 1] * entries + which[..., 0]).clip(0).reshape(batch, heads, -1), -1
    ).reshape(batch, heads, rows, columns)
    scores = jnp.einsum("bihw,bjhw->bhij", query, key) * width**-0.5 + bias
    scores = jnp.where(which[..., 0] >= 0, scores, -jnp.inf)
    reading = (which[..., 0] >= 0).any(-1)
    lse = jax.nn.logsumexp(jnp.where(reading[..., None], scores, 0), axis=-1)
    weights = jnp.where(which[..., 0] >= 0, jnp.exp(scores - lse[..., None]), 0)
    return jnp.einsum("bhij,bjhv->bihv", weights, value), jnp.where(reading, lse, -jnp.inf)


CASES = {
    "shared, ragged": ((37, 53), (16, 8), (3,), None),
    "per head, longer than wide": ((40, 53), (10, 7), (4,), masks.Causal("start")),
    "per batch and head, at positions": ((40, 53), (16, 16), (2, 4), masks.Causal("start")),
    "one block": ((30, 20), (64, 64), (), masks.Window(5, 2, "start")),
    "blocks of one query": ((9, 53), (1, 4), (2, 1), None),
}


def case(name: str) -> tuple[dict[str, Any], masks.BlockTable, Any, dict[str, Any]]:
    sizes, blocks, lead, mask = CASES[name]
    lead = () if lead == (3,) else lead
    shape = (*lead, -(-sizes[0] // blocks[0]), 3)
    table = random_table(1, shape, -(-sizes[1] // blocks[1]), blocks)
    options: dict[str, Any] = {"mask": mask}
    if "positions" in name:
        options |= {"query_positions": POSITIONS["queries"], "key_positions": POSITIONS["keys"]}
    allowed = None if mask is None else np.asarray(mask.dense(*sizes))
    if "positions" in name:
        allowed = POSITIONS["keys"][None] <= POSITIONS["queries"][:, None]
    return arrays(*sizes, shape), table, allowed, options


def loss(attend: Callable[..., Any], at: dict[str, Any]) -> jax.Array:
    output, lse = attend(at)
    return jnp.sin(output).sum() + jnp.sin(jnp.where(lse == -jnp.inf, 0, lse)).sum()


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_all_derivatives(name: str, implementation: str) -> None:
    with jax.enable_x64(True):
        at, table, allowed, options = case(name)
        along = {key: jnp.asarray(np.random.default_rng(2).normal(size=each.shape)) for key, each in at.items()}

        def ours(at: dict[str, Any]) -> Any:
            at = dict(at)
            given = at.pop("query"), at.pop("key"), at.pop("value"), table
            return block_sparse_attention(*given, **at, **options, implementation=implementation)

        def everything(attend: Callable[..., Any]) -> Any:
            def run(at: Any, along: Any) -> Any:
                slope, bend = jax.jvp(jax.grad(partial(loss, attend)), (at,), (along,))
                return attend(at), slope, bend, jax.jvp(partial(loss, attend), (at,), (along,))[1]

            return run

        have = jax.jit(everything(ours), compiler_options=QUICKLY)(at, along)
        truth = everything(lambda at: by_definition(at, table, allowed))
        want = jax.jit(truth, compiler_options=QUICKLY)(at, along)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), have, want)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=6, deadline=None)
def test_any_sizes_and_blocks(seed: int, rows: int, columns: int, block_rows: int, block_columns: int) -> None:
    rng = np.random.default_rng(seed)
    table = random_table(seed, (-(-rows // block_rows), int(rng.integers(1, 5))), -(-columns // block_columns),
                         (block_rows, block_columns))  # fmt: skip
    at = arrays(rows, columns, (2, *table.indices.shape), heads=2, kv_heads=1, batch=1)

    def ours(at: dict[str, Any]) -> Any:
        given = at["query"], at["key"], at["value"], table
        return block_sparse_attention(*given, log_gates=at["log_gates"], implementation="xla")

    want = jax.jit(lambda at: by_definition(at, table, None), compiler_options=QUICKLY)(at)
    have = jax.jit(ours, compiler_options=QUICKLY)(at)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), have, want)


@pytest.mark.parametrize(("implementation", "block"), [("gpu", 16), ("tpu", 128)])
def test_kernels_in_the_interpreter(implementation: str, block: int) -> None:
    """Lists for each batch entry and head, positions and a mask; values and gradients, in float32."""
    length = 3 * block - 5
    at = arrays(length, length, (), heads=2, kv_heads=1)
    given = at["query"], at["key"], at["value"]
    table = random_table(4, (2, 2, 3, 2), 3, (block, block))
    options = {"mask": masks.Causal("start"), "query_positions": jnp.arange(length)[::-1],
               "key_positions": jnp.asarray(np.random.default_rng(7).permutation(length))}  # fmt: skip

    def both(implementation: str) -> Any:
        def run(*given: Any) -> Any:
            def of(given: Any) -> Any:
                made = block_sparse_attention(*given, table, **options, implementation=implementation)
                return loss(lambda _: made, given), made

            (_, made), slopes = jax.value_and_grad(of, has_aux=True)(given)
            return made, slopes

        return jax.jit(run)(*given)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), both(implementation), both("reference"))


GATED = {
    "gpu, blocks are tiles": ("gpu", 40, (16, 16), None, (), (2,)),
    "gpu, blocks of several tiles": ("gpu", 75, (32, 32), Tiles(16, 16), (2, 1), ()),
    "tpu, blocks are tiles": ("tpu", 300, (64, 128), None, (), ()),
    "tpu, blocks of several tiles": ("tpu", 300, (32, 256), Tiles(16, 128), (2,), (2, 1)),
}


def gated(name: str, run: Callable[..., Any]) -> None:
    """What `run(loss, attend, at, along)` gives of kernels in the interpreter and of the reference, in float32."""
    implementation, length, blocks, tiles, of_table, of_gates = GATED[name]
    row_blocks, column_blocks = (-(-length // block) for block in blocks)
    table = random_table(4, (*of_table, row_blocks, 3), column_blocks, blocks)
    at = arrays(length, length, (*of_gates, row_blocks, 3), heads=2, kv_heads=1)
    along = {key: jnp.asarray(np.random.default_rng(2).normal(size=each.shape)) for key, each in at.items()}
    at, along = jax.tree.map(lambda each: each.astype(jnp.float32), (at, along))

    def made(implementation: str, tiles: Tiles | None) -> Any:
        def attend(at: dict[str, Any]) -> Any:
            given, options = (at["query"], at["key"], at["value"], table), {"mask": masks.Causal("start")}
            options |= {"log_gates": at["log_gates"], "implementation": implementation, "tiles": tiles}
            return block_sparse_attention(*given, **options)

        return jax.jit(partial(run, partial(loss, attend), attend), compiler_options=QUICKLY)(at, along)

    have, want = made(implementation, tiles), made("reference", None)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), have, want)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "several" in name else ()) for name in GATED]
)
def test_gates_in_the_interpreter(name: str) -> None:
    gated(name, lambda loss, attend, at, _: (attend(at), jax.grad(loss)(at)))


@pytest.mark.slow
@pytest.mark.parametrize("name", GATED)
def test_gates_forward_and_forward_over_reverse_in_the_interpreter(name: str) -> None:
    gated(
        name,
        lambda loss, _, at, along: (jax.jvp(loss, (at,), (along,)), jax.jvp(jax.grad(loss), (at,), (along,))),
    )


@pytest.mark.slow
def test_gates_by_columns_on_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where results for keys are too many to be kept whole."""
    monkeypatch.setattr(tpu, "WHOLE", 0)
    gated("tpu, blocks of several tiles", lambda loss, _, at, __: jax.grad(loss)(at))


@pytest.mark.parametrize("implementation", ["gpu", "tpu"])
def test_gates_that_shut_out_and_entries_that_do_not_count(implementation: str) -> None:
    """-inf gives an entry no weight; what an entry holds that does not count is not seen, and has gradient 0."""
    at = jax.tree.map(lambda each: each.astype(jnp.float32), arrays(128, 256, (2, 4), heads=1, kv_heads=1, batch=1))
    table = masks.BlockTable(jnp.array([[0, 1, 0, 1], [1, -1, 2, 0]]), jnp.array([3, 3]), rows=64, columns=128)
    gates = jnp.array([[0.5, -jnp.inf, jnp.nan, jnp.nan], [0.2, jnp.nan, jnp.nan, jnp.nan]])

    def run(gates: jax.Array) -> Any:
        given = at["query"], at["key"], at["value"], table
        output, lse = block_sparse_attention(*given, log_gates=gates, implementation=implementation)
        return jnp.sin(output).sum() + lse.sum(), output

    (_, output), slope = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=QUICKLY)(gates)
    alone = masks.BlockTable(jnp.array([[0], [1]]), rows=64, columns=128)
    want, _ = block_sparse_attention(at["query"], at["key"], at["value"], alone, implementation="xla")
    np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-5)
    # All weight of a row is in one block: its gate moves nothing but the log-sum-exp.
    np.testing.assert_allclose(slope, [[64, 0, 0, 0], [64, 0, 0, 0]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "blocks", "reason"),
    [
        ("cuda", (24, 16), "blocks of 24 queries: a tile has no fewer than 16"),
        ("tpu", (16, 64), "blocks of 64 keys: a tile has no fewer than 128"),
    ],
)
def test_blocks_that_no_tile_divides_run_as_the_tiled_loop(platform: str, blocks: tuple[int, int], reason: str) -> None:
    at = jax.tree.map(lambda each: each.astype(jnp.float32), arrays(200, 200, ()))
    table = random_table(3, (-(-200 // blocks[0]), 2), 3, blocks)
    traced = jax.make_jaxpr(lambda *given: block_sparse_attention(*given, table))(at["query"], at["key"], at["value"])
    (call,) = _calls(traced.jaxpr)
    operands = [variable.aval for variable in call.invars]
    choice = _OPERATIONS[call.primitive].choose(platform, *operands, **call.params)
    assert choice.name == "xla"
    assert reason in str(choice.reason)


@pytest.mark.parametrize(("platform", "native"), [("cuda", "gpu"), ("tpu", "tpu")])
def test_gates_run_on_the_kernels_of_their_platform(platform: str, native: str) -> None:
    """Forward pass and gradient, as `kernels.implementation` chooses."""
    at = arrays(256, 256, (4, 2, 2))
    table = masks.BlockTable(jnp.array([[0, 1], [1, 0]]), rows=128, columns=128)

    def total(query: jax.Array, gates: jax.Array) -> jax.Array:
        return block_sparse_attention(query, at["key"], at["value"], table, log_gates=gates)[0].sum()

    shapes = [jax.ShapeDtypeStruct(at[name].shape, jnp.float32) for name in ("query", "log_gates")]
    at = jax.tree.map(lambda each: each.astype(jnp.float32), at)
    found = list(_calls(jax.make_jaxpr(jax.grad(total, (0, 1)))(*shapes).jaxpr))
    assert len(found) > 1
    for call in found:
        operands = [variable.aval for variable in call.invars]
        choice = _OPERATIONS[call.primitive].choose(platform, *operands, **call.params)
        assert choice.name == native, choice.reason


def test_all_blocks_listed_is_dense_attention() -> None:
    at = arrays(40, 40, ())
    table = masks.BlockTable(jnp.broadcast_to(jnp.arange(5)[::-1], (5, 5)), rows=8, columns=8)
    output, lse = block_sparse_attention(at["query"], at["key"], at["value"], table, mask=masks.Causal("start"))
    want, found = kernels.attention(
        at["query"], at["key"], at["value"], mask=masks.Causal("start"), statistics=("lse",)
    )
    np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, found.lse, rtol=1e-5, atol=1e-6)


def test_disjoint_tables_merge_to_their_union() -> None:
    at = arrays(40, 40, ())
    indices = jnp.argsort(jax.random.uniform(jax.random.key(0), (4, 5, 5)), axis=-1)
    parts = [
        block_sparse_attention(at["query"], at["key"], at["value"], masks.BlockTable(some, rows=8, columns=8))
        for some in (indices[..., :2], indices[..., 2:4], indices[..., :4])
    ]
    output, lse = kernels.merge(*(jnp.stack([part[which] for part in parts[:2]]) for which in (0, 1)))
    np.testing.assert_allclose(output, parts[2][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, parts[2][1], rtol=1e-5, atol=1e-6)


def test_the_table_maps_and_may_be_traced() -> None:
    at = arrays(40, 40, ())
    indices = jnp.asarray(np.random.default_rng(0).integers(0, 5, (3, 5, 2)))

    def one(indices: jax.Array) -> jax.Array:
        return block_sparse_attention(
            at["query"], at["key"], at["value"], masks.BlockTable(indices, rows=8, columns=8)
        )[0]

    have = jax.jit(jax.vmap(one))(indices)
    for number in range(3):
        np.testing.assert_allclose(have[number], one(indices[number]), rtol=1e-6, atol=1e-6)


def test_work_and_memory_go_with_what_is_listed() -> None:
    """Temporaries of both passes, from compiled programs, grow as length does; keys not listed are not seen."""
    block, heads, width = 64, 2, 64

    def both(query: Any, key: Any, value: Any, indices: Any) -> Any:
        table = masks.BlockTable(indices, rows=block, columns=block)
        return jax.grad(lambda q, k, v: block_sparse_attention(q, k, v, table)[0].sum(), (0, 1, 2))(query, key, value)

    def of_query(length: int) -> float:
        shape = jax.ShapeDtypeStruct((1, length, heads, width), jnp.float32)
        indices = jax.ShapeDtypeStruct((length // block, 8), jnp.int32)
        memory: Any = jax.jit(both).lower(shape, shape, shape, indices).compile().memory_analysis()
        return memory.temp_size_in_bytes / (length * heads * width * 4)

    # A copy of each operand, cotangent and result in the order of the grid.
    short, long = of_query(4096), of_query(16384)
    assert long < 1.01 * short
    assert long < 8

    at = arrays(40, 40, ())
    table = masks.BlockTable(jnp.zeros((5, 1), int), rows=8, columns=8)
    ruined = {name: at[name].at[:, 8:].set(jnp.nan) for name in ("key", "value")}
    output, _ = block_sparse_attention(at["query"], ruined["key"], ruined["value"], table, implementation="xla")
    assert jnp.isfinite(output).all()


def test_arguments_that_do_not_fit() -> None:
    at = arrays(40, 40, ())
    given = at["query"], at["key"], at["value"]
    table = masks.BlockTable(jnp.zeros((5, 2), int), rows=8, columns=8)
    few, none = masks.BlockTable(jnp.zeros((4, 2), int), rows=8, columns=8), dataclasses.replace(table, rows=0)
    shifted = masks.At(masks.Causal("start"), jnp.arange(3), jnp.arange(40))
    for which, options, message in (
        (table, {"log_gates": jnp.zeros((5, 3))}, "log_gates must end in"),
        (table, {"mask": table}, "mask must have no block table"),
        (table, {"query_positions": jnp.arange(40)}, "must come together"),
        (few, {}, "indices of a block table must end in"),
        (none, {}, "rows and columns of a block must be at least 1"),
        (table, {"mask": shifted}, "queries must be positions of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            block_sparse_attention(*given, which, **options)
    with pytest.raises(TypeError, match=r"indices of a block table must be integers"):
        block_sparse_attention(*given, masks.BlockTable(jnp.zeros((5, 2)), rows=8, columns=8))
