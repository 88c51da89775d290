"""Output, log-sum-exp and their derivatives, first and second, in both modes, against dense attention in float64."""

from functools import partial
from typing import Any

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CASES, Case

import kernels
from kernels import masks
from kernels.loop import default_tiles


def reverse_over_reverse(call):
    def second(arrays, along):
        def slope(at):
            gradient = jax.grad(contract.pulled(call))(at)
            return sum(jnp.vdot(gradient[name], along[name]) for name in along)

        return jax.grad(slope)(arrays)

    return second


FEW = [
    case
    for case in CASES
    if case.name
    in {"everything", "lengths, one 0", "bias of scores", "bias of heads", "dense mask", "causal end, more keys",
        "one query", "sink", "one key head", "two batch axes", "bfloat16", "block table"}
]  # fmt: skip
"""Forward and second derivatives follow from the same rules, mask by mask; these cases have every feature in them."""


def every(step: int) -> list[Any]:
    """Those cases; but for every so manyth they are slow tests."""
    return [pytest.param(case, marks=() if number % step == 0 else pytest.mark.slow) for number, case in enumerate(FEW)]


@pytest.mark.parametrize("case", [case for case in CASES if case not in FEW], ids=lambda case: case.name)
def test_value_and_reverse(case: Case) -> None:
    contract.against_dense(case, "xla", contract.value_and_slope, 4.0, 2.0)


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_value_reverse_forward_and_forward_over_reverse(case: Case) -> None:
    contract.against_dense(case, "xla", contract.forward_of_value_and_slope, 4.0, 2.0, 4.0, 4.0)


@pytest.mark.parametrize("case", every(4), ids=lambda case: case.name)
def test_reverse_of_the_reference(case: Case) -> None:
    contract.against_dense(case, "reference", contract.value_and_slope, 4.0)


@pytest.mark.parametrize("case", every(2), ids=lambda case: case.name)
def test_reverse_over_reverse(case: Case) -> None:
    contract.against_dense(case, "xla", reverse_over_reverse, 4.0)


def test_tiles_of_the_kernels_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow ones where the mask is, and those of several problems at once, for which the mask differs."""
    monkeypatch.setitem(contract.TILED, "xla", None)
    near = masks.Local(20, 13, "start") & masks.Lengths(np.array([40, 150]))
    placed = masks.At(masks.Window(30, 0, "start"), *np.random.default_rng(0).integers(0, 300, (2, 2, 150)))
    for mask in (near, placed):
        assert default_tiles(mask).rows == 64
        case = Case("narrow", query_length=150, key_length=150, mask=mask)
        contract.against_dense(case, "xla", contract.value_and_slope, 4.0)


def test_third_order() -> None:
    case = Case("third", batch=(1,), query_length=20, key_length=20, heads=2, kv_heads=1, mask=masks.Causal("start"))

    def third(call):
        def along_line(arrays, along):
            def at(t):
                return contract.pulled(call)({name: arrays[name] + t * along[name] for name in arrays})

            return jax.grad(jax.grad(jax.grad(at)))(0.0)

        return along_line

    contract.against_dense(case, "xla", third, 4.0)


def test_gradient_of_a_gradient_norm_mapped() -> None:
    """vmap(grad), as meta-learning has it: one gradient for each member of a batch, with the key shared by all."""
    case = Case("mapped", batch=(1,), query_length=20, key_length=24, mask=masks.Causal("end"))

    def per_member(call):
        def mapped(arrays, along):
            stretch = jnp.arange(1.0, 4.0)

            def one(factor):
                return jax.grad(contract.pulled(call))({**arrays, "query": arrays["query"] * factor})

            return jax.vmap(one)(stretch)

        return mapped

    contract.against_dense(case, "xla", per_member, 4.0)


@pytest.mark.parametrize(
    "in_axes",
    [(None, 0, 0), (1, 2, 0), *(pytest.param(axes, marks=pytest.mark.slow) for axes in ((0, None, None), (0, 0, 0)))],
)
def test_vmap_over_any_axis_and_operand(in_axes: tuple[int | None, ...]) -> None:
    arrays = list(Case("vmap", batch=(2,), query_length=20, key_length=24, kv_heads=2).arrays().values())
    rng = np.random.default_rng(0)
    stacked = [
        array if axis is None else jnp.stack([array * float(rng.normal()) for _ in range(3)], axis=axis)
        for array, axis in zip(arrays, in_axes, strict=True)
    ]
    tiles = kernels.Tiles(16, 16)

    def loss(*arrays):
        return (kernels.attention(*arrays, mask=masks.Causal("end"), tiles=tiles, implementation="xla") ** 2).sum()

    gradient = jax.grad(loss, (0, 1, 2))
    quickly = partial(jax.jit, compiler_options=contract.FAST_TO_COMPILE)
    alone = quickly(gradient)
    have = quickly(jax.vmap(gradient, in_axes=in_axes))(*stacked)
    for member in range(3):
        own = [
            array if axis is None else jnp.take(array, member, axis=axis)
            for array, axis in zip(stacked, in_axes, strict=True)
        ]
        for got, want in zip(have, alone(*own), strict=True):
            np.testing.assert_allclose(got[member], want, rtol=1e-5, atol=1e-5)
    # Of a sum over the mapped axis: what was shared gets the sum of the gradients.
    total = quickly(jax.grad(lambda *a: jax.vmap(loss, in_axes=in_axes)(*a).sum(), (0, 1, 2)))(*stacked)
    for got, each, axis in zip(total, have, in_axes, strict=True):
        want = each.sum(axis=0) if axis is None else jnp.moveaxis(each, 0, axis)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_masks_map_too() -> None:
    arrays = Case("vmap masks").arrays()
    lengths = jnp.array([[3, 20], [37, 0], [11, 12]])

    def one(lengths):
        return kernels.attention(
            **arrays, mask=masks.Lengths(lengths), implementation="xla", tiles=kernels.Tiles(16, 16)
        )

    have, alone = jax.jit(jax.vmap(one))(lengths), jax.jit(one)
    for member in range(3):
        np.testing.assert_allclose(have[member], alone(lengths[member]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_transpose_in_value(implementation: str) -> None:
    case = Case("transpose", mask=masks.Causal("start"))
    arrays = case.arrays()
    call = contract.function(case, implementation)

    def of_value(value):
        return call({**arrays, "value": value})

    output = jax.jit(of_value)(arrays["value"])
    pull = contract.directions({"output": output})["output"]
    (back,) = jax.jit(lambda pull: jax.linear_transpose(of_value, arrays["value"])(pull))(pull)
    (pulled,) = jax.jit(lambda value, pull: jax.vjp(of_value, value)[1](pull))(arrays["value"], pull)
    np.testing.assert_allclose(back, pulled, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jnp.vdot(back, arrays["value"]), jnp.vdot(pull, output), rtol=1e-4)


def test_finite_differences() -> None:
    """Against no derivative rule at all: central differences in float64."""
    with jax.enable_x64(True):
        case = Case("differences", dtype=jnp.float64, query_length=20, key_length=24, bias=(4, 1, 24), sink=True,
                    mask=masks.Causal("end"), softcap=2.0)  # fmt: skip
        arrays = case.arrays()
        along = contract.directions(arrays)
        loss = contract.pulled(contract.function(case, "xla", ("lse", "entropy", "position_variance")))

        def at(t):
            return loss({name: arrays[name] + t * along[name] for name in arrays})

        value, pushed, first, second = (
            jax.jit(function, compiler_options=contract.FAST_TO_COMPILE)
            for function in (at, lambda t: jax.jvp(at, (t,), (1.0,))[1], jax.grad(at), jax.grad(jax.grad(at)))
        )
        step = 1e-6
        slope = (value(step) - value(-step)) / (2 * step)
        bend = (first(step) - first(-step)) / (2 * step)
        np.testing.assert_allclose(first(0.0), slope, rtol=1e-6)
        np.testing.assert_allclose(pushed(0.0), slope, rtol=1e-6)
        np.testing.assert_allclose(second(0.0), bend, rtol=1e-6)
