"""The Triton kernels, in Pallas' interpreter: the contract, what they refuse, and that they export.

Interpreting takes seconds to compile, so derivatives are taken of a few cases with the main kinds of mask and bias,
every dtype and odd shapes; the whole table is a slow test (`test_forward.py`).
"""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CASES, Case
from jax import export

import kernels
from kernels import masks
from kernels.statistics.requests import ColumnSums

BY_NAME = {case.name: case for case in CASES}
TABLE = [
    "causal offset per batch",
    "causal end, more keys",
    "lengths, one 0",
    "dense mask",
    "bias of queries",
    "everything",
    "one key",
    "bfloat16",
]
"""For values and gradients."""
VALUES = ["segments and causal", "where", "prefix or causal", "bias of heads", "one query", "width 256", "float16"]
TRITON = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]


@pytest.mark.parametrize("name", TABLE)
def test_values_and_gradients(name: str) -> None:
    contract.against_dense(BY_NAME[name], "gpu", contract.value_and_slope, 4.0)


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    contract.against_dense(BY_NAME[name], "gpu", contract.value, 2.0)


@pytest.mark.parametrize("name", ["no key", "no query"])
def test_nothing_there(name: str) -> None:
    contract.against_dense(BY_NAME[name], "gpu", contract.value_and_slope, 2.0)


SMALL = Case(
    "small", batch=(1,), query_length=20, key_length=24, heads=2, kv_heads=1, bias=(2, 1, 24), mask=masks.Causal("end")
)


def test_other_derivatives() -> None:
    contract.against_dense(SMALL, "gpu", contract.forward_of_value_and_slope, 4.0)


def test_statistics() -> None:
    arrays = SMALL.arrays()
    wanted = ("entropy", "expected_position", "position_variance", ColumnSums())
    have, want = (jax.jit(contract.function(SMALL, name, wanted))(arrays)[1] for name in ("gpu", "xla"))
    jax.tree.map(lambda got, truth: np.testing.assert_allclose(got, truth, rtol=2e-5, atol=2e-5), have, want)


def test_mapped() -> None:
    arrays = SMALL.arrays()
    lengths = jnp.array([[3], [24]])

    def one(lengths, bias):
        mask = masks.Lengths(lengths) & masks.Causal("end")
        options = {"implementation": "gpu", "tiles": kernels.Tiles(16, 16)}
        return kernels.attention(**arrays | {"bias": bias}, mask=mask, **options)

    biases = jnp.stack([arrays["bias"], -arrays["bias"]])
    have = jax.jit(jax.vmap(one))(lengths, biases)
    for member in range(2):
        np.testing.assert_allclose(have[member], jax.jit(one)(lengths[member], biases[member]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("wide", width=257, value_width=8), "257 features, more than 256"),
        (BY_NAME["blocks"], "a mask with an array of shape"),
        (Case("gather", mask=masks.Where(lambda i, j: jnp.arange(64)[i] <= j)), "a mask that takes more than arithm"),
    ],
    ids=lambda case: case.name if isinstance(case, Case) else "",
)
def test_says_what_it_cannot_do(case: Case, reason: str) -> None:
    with pytest.raises(ValueError, match=f"implementation 'gpu' cannot do {reason}"):
        jax.jit(contract.function(case, "gpu")).lower(case.arrays())


def test_float64_is_refused() -> None:
    with jax.enable_x64(True):
        case = Case("double", dtype=jnp.float64)
        call, arrays = jax.jit(contract.function(case, "gpu")), case.arrays()
        with pytest.raises(ValueError, match="implementation 'gpu' cannot do float64"):
            call.lower(arrays)


def test_one_program_for_every_platform() -> None:
    case = Case("export", query_length=64, key_length=64, heads=2, kv_heads=1, width=32, value_width=32)
    arrays = case.arrays()

    def loss(arrays: dict[str, jax.Array]) -> jax.Array:
        return (kernels.attention(**arrays, mask=masks.Causal("start")) ** 2).sum()

    program = jax.jit(jax.grad(loss))
    exported = export.export(program, platforms=["cpu", "cuda", "tpu"], disabled_checks=TRITON)(arrays)
    text = exported.mlir_module()
    assert text.count("__gpu$xla.gpu.triton") >= 3
    assert "tpu_custom_call" in text
    jax.tree.map(np.testing.assert_array_equal, exported.call(arrays), program(arrays))
