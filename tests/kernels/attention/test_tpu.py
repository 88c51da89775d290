"""The TPU kernels in Pallas' interpreter: values, derivatives, statistics, races, and what they refuse.

Cases are long enough to have several column tiles, which are at least 128 wide: full, partial, empty and cut off.
"""

from functools import partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import Case
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import kernels
from kernels import masks
from kernels.dense import tpu as dense
from kernels.dense import xla as dense_xla
from kernels.loop import Output
from kernels.pairwise import tpu as pairwise
from kernels.pairwise import xla as pairwise_xla
from kernels.pairwise.primitive import transposed
from kernels.pairwise.tiles import Scores, Tangent, WeightedSums
from kernels.shapes import Grid

CUTS = np.searchsorted((5, 120, 140), np.arange(150), side="right").astype(np.int32)
LONG = {"batch": (2,), "query_length": 40, "key_length": 300, "heads": 2, "kv_heads": 1}
EQUAL = {"batch": (1,), "query_length": 150, "key_length": 150, "heads": 2, "kv_heads": 1}
CASES = [
    Case("plain", **LONG),
    Case("causal end, and queries that read nothing", **EQUAL, mask=masks.Causal(-20)),
    Case("causal offset per batch, values wider", **LONG, mask=masks.Causal(np.array([-9, 200])), value_width=32),
    Case("window or prefix", **LONG, mask=masks.Window(5, 3, 130) | masks.Prefix(np.array([4, 129]))),
    Case("lengths, one 0, a sink", **LONG, mask=masks.Lengths(np.array([0, 140])), sink=True),
    Case("segments and causal, bfloat16", **EQUAL, dtype=jnp.bfloat16, width=32, value_width=32,
         mask=masks.Segments(jnp.asarray(CUTS)) & masks.Causal("start")),
    Case("not a dense mask, bias of keys", **LONG, bias=(2, 1, 1, 300),
         mask=~masks.Dense(np.random.default_rng(0).random((2, 2, 40, 300)) < 0.3)),
    Case("dense mask of rows, bias of queries", **LONG, bias=(40, 1),
         mask=masks.Dense(np.random.default_rng(1).random((1, 1, 40, 1)) < 0.5)),
    Case("where, bias of heads, softcap", **LONG, bias=(2, 1, 1), softcap=2.0, scale=-0.4,
         mask=masks.Where(lambda i, j, step: (i - j) % step[0] == 0, (np.array([3]),))),
    Case("bias of scores over batch", **LONG, bias=(1, 2, 40, 300)),
    Case("bias of all scores, no batch axis", batch=(), query_length=20, key_length=150, bias=(4, 20, 150)),
    Case("one query, width 64", **LONG | {"query_length": 1}, width=64, value_width=32),
    Case("one key, two batch axes, odd widths", batch=(2, 2), query_length=20, key_length=1, width=5, value_width=3),
    Case("no key", batch=(1,), query_length=5, key_length=0),
    Case("no query", batch=(1,), query_length=0, key_length=5),
    Case("width 256, float16", **EQUAL | {"heads": 1}, width=256, value_width=256, dtype=jnp.float16),
]  # fmt: skip
SEVERAL = [CASES[4], CASES[6], CASES[8]]
"""Second derivatives take long to compile; these cases have every feature in them."""
TILES = kernels.Tiles(16, 128)
compiled = partial(jax.jit, compiler_options=contract.FAST_TO_COMPILE)


def names(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@names([case for case in CASES if case not in SEVERAL])
def test_value_and_reverse(case: Case) -> None:
    contract.against_dense(case, "tpu", contract.value_and_slope, 4.0)


@names(SEVERAL)
def test_value_reverse_forward_and_forward_over_reverse(case: Case) -> None:
    contract.against_dense(case, "tpu", contract.forward_of_value_and_slope, 4.0)


def test_results_by_columns_that_are_not_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # As for long sequences: rows and columns have a kernel each.
    monkeypatch.setattr(pairwise, "WHOLE", 0)
    contract.against_dense(Case("apart", **LONG, mask=masks.Causal("end")), "tpu", contract.value_and_slope, 4.0)


def test_statistics_agree_with_the_tiled_loop() -> None:
    case = Case("statistics", **LONG, mask=masks.Causal("end"))
    wanted = ("entropy", "position_variance", kernels.ColumnSums(), kernels.WindowedDistance(9, "end"))

    def loss(implementation: str, arrays: dict[str, jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        made = jax.tree.leaves(contract.function(case, implementation, wanted)(arrays))
        return sum(jnp.sum(leaf) for leaf in made if leaf.dtype == jnp.float32), made

    slopes = [compiled(jax.grad(partial(loss, name), has_aux=True))(case.arrays()) for name in ("tpu", "xla")]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-2), *slopes)


def test_vmap_and_repeats_to_the_bit() -> None:
    case = Case("mapped", **EQUAL, mask=masks.Causal("start"))
    arrays = case.arrays()
    gradient = jax.grad(contract.pulled(contract.function(case, "tpu")))
    mapped = compiled(jax.vmap(lambda factor: gradient({**arrays, "query": arrays["query"] * factor})))
    first, second = mapped(jnp.arange(1.0, 3.0)), mapped(jnp.arange(1.0, 3.0))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    own = compiled(gradient)({**arrays, "query": arrays["query"] * 2})
    jax.tree.map(lambda have, want: np.testing.assert_allclose(have[1], want, rtol=1e-5, atol=1e-5), first, own)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_padding_is_not_seen(poison: float) -> None:
    mask = masks.Lengths(keys=np.array([9, 140]), queries=np.array([20, 37]))
    case = Case("poison", **LONG, mask=mask, bias=(2, 1, 1, 300))
    clean = case.arrays()
    ruined = dict(clean)
    for name in ("key", "value"):
        ruined[name] = clean[name].at[0, 9:].set(poison).at[1, 140:].set(poison)
    ruined["query"] = clean["query"].at[0, 20:].set(poison)
    ruined["bias"] = clean["bias"].at[0, :, :, 9:].set(poison)
    call = compiled(jax.value_and_grad(contract.pulled(contract.function(case, "tpu", ("lse",)))))
    (want, want_slope), (have, have_slope) = call(clean), call(ruined)
    np.testing.assert_array_equal(have, want)
    jax.tree.map(np.testing.assert_array_equal, have_slope, want_slope)


def on_the_grid(mask: masks.Mask | None) -> tuple[list[jax.Array], dict, Grid]:
    """Query, key and value on a grid, and the options both kernels take."""
    grid = Grid((1,), 1, 1, 32, 150)
    rng = np.random.default_rng(0)
    shapes = [(1, 1, 1, 32, 1, 8), (1, 1, 1, 1, 150, 8), (1, 1, 1, 1, 150, 8)]
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    options = {"sizes": (32, 150), "axes": 3, "tiles": TILES}
    return arrays, {"mask": mask and mask.on(grid), **options}, grid


@pytest.mark.parametrize("mask", [None, masks.Causal("end") & masks.Lengths(jnp.array([140]))], ids=["full", "masked"])
def test_no_races_and_nothing_uninitialised(mask: masks.Mask | None) -> None:
    arrays, options, _ = on_the_grid(mask)
    scores = Scores(0.3, None, False)
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    have = dense.attention(*arrays, scores=scores, interpret=interpret, **options)
    assert not interpret_pallas_call.races.races_found
    want = dense_xla.attention(*arrays, scores=scores, **options)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), have, want)
    query, key, value = arrays
    tangent = Tangent(WeightedSums(scores), (True, True, True, False))
    linear = [*[None] * 4, query.shape, key.shape, value.shape]
    function = transposed(tangent, linear, (True, True), options["sizes"], 3)
    operands = [*arrays, want[1], jnp.ones(query.shape), jnp.ones(want[1].shape)]
    outputs = [Output(array.shape, array.dtype) for array in arrays]
    masked = options.pop("mask")
    have = pairwise.pairwise_sum(function, operands, masked, outputs=outputs, interpret=interpret, **options)
    assert not interpret_pallas_call.races.races_found
    want = pairwise_xla.pairwise_sum(function, operands, masked, outputs=outputs, **options)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), have, want)
    pltpu.reset_tpu_interpret_mode_state()


def test_a_race_would_be_found() -> None:
    def reads_before_the_copy_is_there(source, result, scratch, semaphore):
        copy = pltpu.make_async_copy(source, scratch, semaphore)
        copy.start()
        result[...] = scratch[...]
        copy.wait()

    pl.pallas_call(
        reads_before_the_copy_is_there,
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA],
        interpret=pltpu.InterpretParams(detect_races=True),
    )(jnp.ones((8, 128)))
    assert interpret_pallas_call.races.races_found
    pltpu.reset_tpu_interpret_mode_state()


def test_what_it_cannot_do_is_named() -> None:
    case = Case("refused", **LONG)
    layout = np.ones((5, 3), bool)
    where = masks.Where(lambda i, j: jnp.sin(i - j) > 0)
    for mask, reason in ((masks.Blocks(layout, rows=8, columns=100), "an array of shape"), (where, "sin")):
        with pytest.raises(ValueError, match=f"'tpu' cannot do .*{reason}"):
            kernels.attention(**case.arrays(), mask=mask, implementation="tpu")
    with jax.enable_x64(True), pytest.raises(ValueError, match="float64"):
        kernels.attention(**contract.in_float64(case.arrays()), implementation="tpu")


def test_on_a_tpu_what_it_cannot_do_is_left_to_the_tiled_loop() -> None:
    def lowered(mask: masks.Mask) -> str:
        traced = jax.jit(partial(kernels.attention, mask=mask)).trace(**Case("lowered", **LONG).arrays())
        return traced.lower(lowering_platforms=("tpu",)).as_text()

    assert "tpu_custom_call" in lowered(masks.Causal("end"))
    assert "tpu_custom_call" not in lowered(masks.Blocks(np.ones((5, 3), bool), rows=8, columns=100))
