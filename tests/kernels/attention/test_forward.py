"""Forward: every implementation against float64, through the case table."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CASES, Case, each_case

import kernels
from kernels import masks


@each_case("reference")
def test_output_and_lse(case: Case, implementation: str) -> None:
    """Of the tiled loop, `test_derivatives` asks it together with derivatives."""
    contract.against_dense(case, implementation, contract.value, 2.0)


def test_dtypes() -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        output, found = contract.function(Case("dtypes", dtype=dtype), "xla", ("lse",))(Case("d", dtype=dtype).arrays())
        assert (output.dtype, found.lse.dtype) == (dtype, jnp.float32)


@pytest.mark.slow
@each_case("gpu", "tpu")
def test_kernels_on_the_whole_table(case: Case, implementation: str) -> None:
    """What `test_gpu` and `test_tpu` do for a choice of cases, as interpreting takes long to compile."""
    if case.name == "blocks" or (case.name.startswith("block table") and implementation == "tpu"):
        with pytest.raises(ValueError, match=f"'{implementation}' cannot do"):
            contract.function(case, implementation)(case.arrays())
        return
    contract.against_dense(case, implementation, contract.value, 2.0)
    contract.against_dense(case, implementation, contract.value_and_slope, 4.0)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in ("everything", "lengths, one 0", "dense mask")],
    ids=lambda case: case.name,
)
def test_repeats_to_the_bit(case: Case) -> None:
    call = jax.jit(jax.value_and_grad(contract.pulled(contract.function(case, "xla", ("lse", "entropy")))))
    first, second = call(case.arrays()), call(case.arrays())
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("implementation", "poison"),
    [("reference", np.nan), ("xla", np.nan), ("xla", np.inf), ("gpu", np.nan)]
    + [pytest.param(name, np.inf, marks=pytest.mark.slow) for name in ("reference", "gpu")],
)
def test_padding_is_not_seen(implementation: str, poison: float) -> None:
    case = Case("poison", mask=masks.Lengths(keys=np.array([9, 30]), queries=np.array([20, 37])))
    clean = case.arrays()
    ruined = dict(clean)
    for name in ("key", "value"):
        ruined[name] = clean[name].at[0, 9:].set(poison).at[1, 30:].set(poison)
    ruined["query"] = clean["query"].at[0, 20:].set(poison)
    loss = contract.pulled(contract.function(case, implementation, ("lse", "entropy")))
    call = jax.jit(jax.value_and_grad(loss), compiler_options=contract.FAST_TO_COMPILE)
    (want, want_slope), (have, have_slope) = call(clean), call(ruined)
    np.testing.assert_array_equal(have, want)
    jax.tree.map(np.testing.assert_array_equal, have_slope, want_slope)


def test_empty_tiles_cost_nothing() -> None:
    # Keys behind the length would turn every score they touch into not-a-number, in full tiles too.
    query = jnp.ones((1, 64, 1, 8))
    key = jnp.ones((1, 640, 1, 8)).at[:, 64:].set(jnp.nan)
    output = kernels.attention(
        query, key, key, mask=masks.Lengths(64), implementation="xla", tiles=kernels.Tiles(32, 32)
    )
    np.testing.assert_allclose(output, 1.0, rtol=1e-6)


def test_agrees_with_jax() -> None:
    case = Case("peer", width=16, value_width=16)
    arrays = case.arrays()
    theirs = jax.nn.dot_product_attention(**arrays, is_causal=True)
    ours = kernels.attention(**arrays, mask=masks.Causal("start"), implementation="xla", tiles=kernels.Tiles(16, 16))
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
