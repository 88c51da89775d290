"""Statistics against their definitions from dense weights in float64, and their derivatives."""

from functools import partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CASES, Case

import kernels
from kernels import masks


def requests(case: Case) -> tuple:
    rng = np.random.default_rng(5)
    keys = (*case.batch, case.key_length, case.kv_heads, 2)
    return (
        "lse",
        "entropy",
        "expected_position",
        "position_variance",
        "maximum",
        kernels.Functional(jnp.asarray(rng.normal(size=keys), jnp.float32)),
        kernels.Mass(jnp.asarray(rng.random((case.key_length, 3)) < 0.4)),
        kernels.ColumnSums(rows=jnp.asarray(rng.random((case.heads, case.query_length)), jnp.float32)),
        kernels.RowSums(masks.Window(4, 2, "end")),
        kernels.WindowedDistance(6, "end"),
        kernels.TopKeys(5),
    )


def by_definition(case: Case, arrays: dict) -> dict[str, np.ndarray]:
    """From the oracle's weights, in numpy; and its output."""
    output, lse, weights = map(np.asarray, compiled(partial(contract.oracle, case))(arrays))
    asked = requests(case)
    position = np.arange(case.key_length)
    mean = weights @ position
    distance = np.abs(np.arange(case.query_length)[:, None] + case.key_length - case.query_length - position)
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    group = case.heads // case.kv_heads
    values = np.repeat(np.asarray(asked[5].values, np.float64), group, axis=-2)
    ranked = -np.sort(-weights, axis=-1)[..., :5]
    behind = [(0, 0)] * (ranked.ndim - 1) + [(0, 5 - ranked.shape[-1])]
    window = np.asarray(masks.Window(4, 2, "end").dense(case.query_length, case.key_length))
    return {
        "output": output,
        "lse": lse,
        "entropy": -(weights * logs).sum(-1),
        "expected_position": mean,
        "position_variance": (weights * (position - mean[..., None]) ** 2).sum(-1),
        "maximum": weights.max(-1, initial=0),
        "functional": np.einsum("...hqk,...khn->...qhn", weights, values),
        "mass": np.einsum("...hqk,kn->...qhn", weights, np.asarray(asked[6].columns)),
        "column_sums": np.einsum("...hqk,hq->...hk", weights, np.asarray(asked[7].rows, np.float64)),
        "row_sums": (weights * window).sum(-1),
        "windowed_distance": (weights * np.minimum(distance, 6)).sum(-1),
        "top_weights": np.pad(ranked, behind),
    }


SOME = [
    case
    for case in CASES
    if case.name
    in {"plain", "everything", "lengths, one 0", "bias of keys", "causal end, more queries", "segments and causal",
        "sink", "no key", "no query", "one key", "one key head", "two batch axes", "bfloat16", "float16"}
]  # fmt: skip
"""All statistics at once take long to compile; these cases have every feature in them."""


def compiled(function):
    return jax.jit(function, compiler_options=contract.FAST_TO_COMPILE)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_values(case: Case, implementation: str) -> None:
    arrays = case.arrays()
    output, found = compiled(contract.function(case, implementation, requests(case)))(arrays)
    with jax.enable_x64(True):
        truth = by_definition(case, contract.in_float64(arrays))
    half = output.itemsize < 4
    np.testing.assert_allclose(np.asarray(output, float), truth.pop("output"), atol=2e-2 if half else 1e-5)
    for name, want in truth.items():
        got = np.asarray(getattr(found, name), np.float64)
        assert got.shape == want.shape, name
        # Float32 sums over positions up to 64 and their squares.
        scale = {"position_variance": 64.0**2, "expected_position": 64.0, "windowed_distance": 6.0}.get(name, 4.0)
        np.testing.assert_allclose(got, want, atol=4e-6 * scale, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_keys_of_largest_weight(implementation: str) -> None:
    case = Case("largest", mask=masks.Lengths(np.array([3, 30])))
    arrays = case.arrays()
    _, found = compiled(contract.function(case, implementation, ("maximum", kernels.TopKeys(5))))(arrays)
    weights = np.asarray(contract.oracle(case, arrays)[2])
    np.testing.assert_array_equal(found.argmax, weights.argmax(-1))
    np.testing.assert_array_equal(found.top_keys[1], np.argsort(-weights[1], axis=-1, kind="stable")[..., :5])
    assert (np.asarray(found.top_keys[0, ..., 3:]) == -1).all()
    np.testing.assert_array_equal(found.top_weights[0, ..., 3:], 0)


BY_NAME = {case.name: case for case in CASES}
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("everything", "plain", "bias of keys")]


@pytest.mark.parametrize("name", ["lengths, one 0", *MORE])
def test_derivatives(name: str) -> None:
    """First and second, of all of them at once; the quadratic definitions are differentiated by JAX alone."""
    case = BY_NAME[name]
    arrays = case.arrays()
    along = contract.directions(arrays)

    def slopes(implementation: str):
        def both(arrays, along):
            loss = contract.pulled(lambda at: floats(contract.function(case, implementation, requests(case))(at)[1]))
            return jax.jvp(jax.grad(loss), (arrays,), (along,))

        return both

    def floats(found):
        return [leaf for leaf in jax.tree.leaves(found) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    have = compiled(slopes("xla"))(arrays, along)
    want = compiled(slopes("reference"))(arrays, along)
    for got, plain in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, plain, rtol=1e-4, atol=1e-4 * float(jnp.abs(plain).max() + 1))


def test_requests_that_do_not_fit(library_checks: None) -> None:
    arrays = Case("wrong").arrays()
    for statistics, message in (
        (("entropie",), "statistics must be among"),
        (("lse", "lse"), "each kind once"),
        ((kernels.Mass(jnp.ones((5, 2))),), "Mass.columns must be of shape"),
        ((kernels.WindowedDistance(0, "start"),), "window must be at least 1"),
        ((kernels.ColumnSums(rows=jnp.ones(5)),), "ColumnSums.rows must broadcast"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.attention(**arrays, statistics=statistics)
