"""Causal linear attention against its recurrence in numpy, its derivatives against those of the quadratic form."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

import kernels

FAST_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiling is nearly all that tests of derivatives do."""
PALLAS = ["gpu", "tpu"]
"""In Pallas' interpreter, in float32."""


@dataclass(frozen=True)
class Problem:
    batch: int = 2
    length: int = 21
    heads: int = 4
    kv_heads: int = 2
    width: int = 5
    value_width: int = 3
    decay: str | None = "token"
    delta: bool = False
    state: bool = False
    seed: int = 0

    def arrays(self, dtype: Any = np.float64) -> dict[str, Any]:
        rng = np.random.default_rng(self.seed)
        of_token = (self.batch, self.length, self.kv_heads)
        arrays: dict[str, Any] = {
            "query": rng.normal(size=(self.batch, self.length, self.heads, self.width)),
            "key": rng.normal(size=(*of_token, self.width)),
            "value": rng.normal(size=(*of_token, self.value_width)),
        }
        if self.delta:
            arrays["key"] /= np.linalg.norm(arrays["key"], axis=-1, keepdims=True)
            arrays["delta_rate"] = rng.uniform(0, 1.5, of_token)
        if self.decay == "token":
            arrays["log_decay"] = -rng.exponential(0.5, of_token)
        if self.decay == "head":
            arrays["log_decay"] = -rng.exponential(0.5, self.kv_heads)
        if self.state:
            shape = (self.batch, self.kv_heads, self.width)
            arrays["state"] = kernels.LinearState(rng.normal(size=(*shape, self.value_width)), rng.normal(size=shape))
        return jax.tree.map(lambda array: jnp.asarray(array, dtype), arrays)


def recurrence(
    query, key, value, log_decay=None, delta_rate=None, state=None, normalise=False, scale=None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the definition, in numpy: output, memory and total."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    batch, length, heads, width = query.shape
    kv_heads, value_width = key.shape[2], value.shape[3]
    decay = np.broadcast_to(0.0 if log_decay is None else np.asarray(log_decay), (batch, length, kv_heads))
    rate = None if delta_rate is None else np.broadcast_to(np.asarray(delta_rate), (batch, length, kv_heads))
    scale = (1.0 if normalise else width**-0.5) if scale is None else scale
    output = np.zeros((batch, length, heads, value_width))
    memories, totals = np.zeros((batch, kv_heads, width, value_width)), np.zeros((batch, kv_heads, width))
    for b, h in np.ndindex(batch, kv_heads):
        memory = np.zeros((width, value_width)) if state is None else np.array(state.memory[b, h], np.float64)
        total = np.zeros(width) if state is None else np.array(state.total[b, h], np.float64)
        for t in range(length):
            memory, total = np.exp(decay[b, t, h]) * memory, np.exp(decay[b, t, h]) * total
            new = value[b, t, h]
            if rate is not None:
                new = rate[b, t, h] * (new - memory.T @ key[b, t, h])
            memory, total = memory + np.outer(key[b, t, h], new), total + key[b, t, h]
            for g in range(heads // kv_heads):
                read = query[b, t, h * (heads // kv_heads) + g]
                divisor = read @ total if normalise else 1.0
                output[b, t, h * (heads // kv_heads) + g] = scale * (read @ memory) / divisor
        memories[b, h], totals[b, h] = memory, total
    return output, memories, totals


def in_chunks(implementation: str, chunk: int | None, **options: Any):
    @jax.jit
    def call(arrays: dict[str, Any]) -> Any:
        return kernels.causal_linear_attention(
            **arrays, **options, return_state=True, chunk=chunk, implementation=implementation
        )

    return call


def worst(have: Any, want: Any) -> float:
    pairs = zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0)) for a, b in pairs)


PROBLEMS = [
    Problem(decay=None),
    Problem(decay="head"),
    Problem(),
    Problem(state=True),
    Problem(delta=True, decay=None),
    Problem(delta=True, decay="head", heads=3, kv_heads=3),
    Problem(delta=True, state=True),
]


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_is_the_recurrence(problem: Problem, implementation: str) -> None:
    """For chunks of one token, of no divisor of the length, of all tokens and more."""
    with jax.enable_x64(True):
        arrays = problem.arrays()
        want = recurrence(**arrays)
        for chunk in (None,) if implementation == "reference" else (1, 8, problem.length, 64):
            have = in_chunks(implementation, chunk)(arrays)
            assert worst(have, want) < 1e-12, chunk


NORMALISED: dict[str, Any] = {"normalise": True, "feature_map": jnp.exp}
"""With features above 0 the weights sum to something."""


def above_zero(arrays: dict[str, Any]) -> dict[str, Any]:
    """With a state such as these features leave."""
    return arrays | {"state": jax.tree.map(jnp.abs, arrays["state"])} if "state" in arrays else arrays


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("state", [False, True])
def test_normalised(implementation: str, state: bool) -> None:
    with jax.enable_x64(True):
        arrays = above_zero(Problem(state=state).arrays())
        have = in_chunks(implementation, 8, **NORMALISED)(arrays)
        want = recurrence(**arrays | {"query": np.exp(arrays["query"]), "key": np.exp(arrays["key"])}, normalise=True)
        assert worst(have, want) < 1e-12
        if not state:
            constant = arrays | {"value": jnp.ones_like(arrays["value"])}
            averages, _ = in_chunks(implementation, 8, **NORMALISED)(constant)
            np.testing.assert_allclose(averages, 1, rtol=1e-12)


@settings(max_examples=5, deadline=None)
@given(
    problem=st.builds(
        Problem,
        batch=st.integers(1, 2),
        length=st.integers(0, 40),
        heads=st.just(4),
        kv_heads=st.sampled_from([1, 2, 4]),
        width=st.integers(1, 9),
        value_width=st.integers(1, 9),
        decay=st.sampled_from([None, "head", "token"]),
        delta=st.booleans(),
        state=st.booleans(),
        seed=st.integers(0, 9),
    ),
    chunk=st.sampled_from([1, 4, 16]),
)
def test_any_shapes_in_float32(problem: Problem, chunk: int) -> None:
    arrays = problem.arrays(np.float32)
    have = in_chunks("xla", chunk)(arrays)
    want = recurrence(**arrays)
    assert have[0].shape == (problem.batch, problem.length, 4, problem.value_width)
    assert worst(have, want) < 2e-5 * (1 + max(np.abs(array).max(initial=0) for array in want))


@pytest.mark.parametrize("implementation", PALLAS)
@pytest.mark.parametrize("problem", [replace(problem, length=150, width=20) for problem in PROBLEMS], ids=str)
def test_pallas_kernels_are_the_recurrence(problem: Problem, implementation: str) -> None:
    arrays = problem.arrays(np.float32)
    want = recurrence(**arrays)
    have = in_chunks(implementation, 16)(arrays)
    assert worst(have, want) < 2e-5 * max(np.abs(array).max() for array in want)


@pytest.mark.parametrize("implementation", PALLAS)
@pytest.mark.parametrize("problem", [Problem(length=37, state=True), Problem(length=37, delta=True)], ids=str)
def test_derivatives_by_pallas_kernels(problem: Problem, implementation: str) -> None:
    """Which run both kernels in both directions; against the quadratic form in float64."""

    def derivatives(call, arrays):
        def loss(arrays):
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(call(arrays)))

        both = jax.jit(lambda a: jax.jvp(jax.grad(loss), (a,), (a,)), compiler_options=FAST_TO_COMPILE)
        return both(arrays)

    have = derivatives(in_chunks(implementation, 16), problem.arrays(np.float32))
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), problem.arrays(np.float32))
        want = derivatives(in_chunks("reference", None), exact)
    size = max(float(np.abs(np.asarray(leaf)).max()) for leaf in jax.tree.leaves(want))
    assert worst(have, want) < 5e-5 * size


def test_one_program_exports_for_every_platform() -> None:
    """With the native kernels in it, both of them."""
    arrays = Problem(delta=True, batch=1, length=128, width=64, value_width=64).arrays(np.float32)
    call = jax.jit(lambda arrays: kernels.causal_linear_attention(**arrays))
    allowed = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    text = export.export(call, platforms=("cpu", "cuda", "tpu"), disabled_checks=allowed)(arrays).mlir_module()
    for kernel in ("decayed_product", "unit_solve"):
        assert text.count(f'name = "{kernel}"') >= 1
    assert "tpu_custom_call" in text


@pytest.mark.parametrize("implementation", ["xla"])
@pytest.mark.parametrize(
    ("problem", "options"),
    [
        (Problem(state=True), {}),
        (Problem(delta=True, state=True), {}),
        (Problem(decay="head"), {}),
        (Problem(state=True, length=9), NORMALISED),
    ],
    ids=["with a state", "delta rule with a state", "a decay a head", "normalised with a state"],
)
def test_every_derivative(problem: Problem, options: dict[str, Any], implementation: str) -> None:
    """Reverse, forward, second order in both ways, against JAX's own derivatives of the quadratic form."""
    with jax.enable_x64(True):
        arrays = above_zero(problem.arrays()) if options else problem.arrays()
        along = jax.tree.map(lambda array: jnp.cos(7 * array), arrays)

        def derivatives(call):
            def loss(arrays):
                return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(call(arrays)))

            gradient = jax.grad(loss)

            def all_of_them(arrays, along):
                forward = jax.jvp(call, (arrays,), (along,))
                second = jax.jvp(gradient, (arrays,), (along,))

                def norm(arrays):
                    return sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient(arrays)))

                return forward, second, jax.grad(norm)(arrays)

            return jax.jit(all_of_them, compiler_options=FAST_TO_COMPILE)(arrays, along)

        have = derivatives(in_chunks(implementation, 8, **options))
        want = derivatives(in_chunks("reference", None, **options))
        size = max(float(np.abs(np.asarray(leaf)).max()) for leaf in jax.tree.leaves(want))
        assert worst(have, want) < 1e-11 * size


def test_finite_differences_of_the_decay() -> None:
    with jax.enable_x64(True):
        arrays = Problem(delta=True, state=True).arrays()
        call = in_chunks("xla", 8)
        along = jnp.sin(jnp.arange(arrays["log_decay"].size)).reshape(arrays["log_decay"].shape)

        def at(step):
            return call(arrays | {"log_decay": arrays["log_decay"] + step * along})

        slope = jax.jit(lambda: jax.jvp(at, (0.0,), (1.0,))[1])()
        ends = [at(step) for step in (1e-5, -1e-5)]
        assert worst(slope, jax.tree.map(lambda a, b: (a - b) / 2e-5, *ends)) < 1e-8


def test_vmap_and_transposition() -> None:
    with jax.enable_x64(True):
        arrays = Problem().arrays()
        call = in_chunks("xla", 8)
        decays = jnp.stack([arrays["log_decay"], 2 * arrays["log_decay"]])

        def slope(decay: jax.Array) -> Any:
            return jax.grad(lambda a: jnp.sin(call(a)[0]).sum())(arrays | {"log_decay": decay})

        mapped, alone = jax.jit(jax.vmap(slope)), jax.jit(slope)
        assert worst(mapped(decays), jax.tree.map(lambda *a: np.stack(a), *map(alone, decays))) < 1e-12
        # <f v, w> = <v, fᵀ w>
        output, _ = call(arrays)
        pull = jnp.cos(jnp.arange(output.size)).reshape(output.shape)
        transposed = jax.linear_transpose(lambda value: call(arrays | {"value": value})[0], arrays["value"])
        turned = jax.jit(transposed)(pull)[0]
        np.testing.assert_allclose(jnp.vdot(output, pull), jnp.vdot(arrays["value"], turned), rtol=1e-12)


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        (Problem(), {}),
        (Problem(decay="head"), {"scale": 1.0}),
        (Problem(delta=True), {}),
        (Problem(), NORMALISED),
        (Problem(decay=None), NORMALISED | {"scale": 0.5}),
    ],
    ids=["a decay a token", "a decay a head, scaled", "delta rule", "normalised", "normalised and scaled, no decay"],
)
def test_state_goes_on(problem: Problem, options: dict[str, Any]) -> None:
    """Two parts with the state between them, then token by token, are one pass."""
    with jax.enable_x64(True):
        arrays = problem.arrays()

        def cut(start: int, stop: int) -> dict[str, Any]:
            return {name: array if array.ndim == 1 else array[:, start:stop] for name, array in arrays.items()}

        call = in_chunks("xla", 4, **options)
        whole, last = call(arrays)
        one, state = call(cut(0, 8))
        two, state = call(cut(8, 13) | {"state": state})
        rest, step = [], jax.jit(partial(kernels.linear_attention_step, **options))
        for token in range(13, 21):
            now = {name: array if array.ndim == 1 else array[:, 0] for name, array in cut(token, token + 1).items()}
            output, state = step(state, **now)
            rest.append(output)
        assert worst(jnp.concatenate([one, two, jnp.stack(rest, 1)], 1), whole) < 1e-12
        assert worst(state, last) < 1e-12


def test_limits_of_decay() -> None:
    """No decay sums everything; all decay leaves each token itself."""
    arrays = Problem(decay=None, heads=2).arrays(np.float32)
    plain = kernels.causal_linear_attention(**arrays, scale=1.0)
    zero = kernels.causal_linear_attention(**arrays, log_decay=jnp.zeros(2), scale=1.0)
    np.testing.assert_array_equal(plain, zero)
    scores = jnp.einsum("bihd,bjhd->bhij", arrays["query"], arrays["key"])
    triangle = jnp.tril(jnp.ones((21, 21)))
    np.testing.assert_allclose(plain, jnp.einsum("bhij,bjhe->bihe", scores * triangle, arrays["value"]), atol=1e-4)
    alone = kernels.causal_linear_attention(**arrays, log_decay=jnp.full(2, -1e4), scale=1.0)
    own = jnp.einsum("bihd,bihd->bih", arrays["query"], arrays["key"])[..., None] * arrays["value"]
    np.testing.assert_allclose(alone, own, atol=1e-5)


def test_no_token_sees_a_later_one_and_long_decays_stay_numbers() -> None:
    arrays = Problem(batch=1, length=2000, heads=2, width=8, value_width=8).arrays(np.float32)
    changed = {name: array.at[:, 1500:].set(jnp.nan) for name, array in arrays.items()}
    call = in_chunks("xla", 64)
    output, _ = call(arrays)
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(call(changed)[0][:, :1472], output[:, :1472])
    np.testing.assert_allclose(output, recurrence(**arrays)[0], atol=1e-4)


def test_memory_is_linear_in_every_derivative() -> None:
    length, heads, width = 8192, 2, 64
    query = jax.ShapeDtypeStruct((1, length, heads, width), jnp.float32)

    def loss(query, key, value):
        decay = jnp.full(heads, -0.01)
        return (kernels.causal_linear_attention(query, key, value, log_decay=decay) ** 2).sum()

    gradient = jax.grad(loss, (0, 1, 2))
    for function, limit in ((gradient, 8), (lambda *a: jax.jvp(gradient, a, a), 24)):
        used = jax.jit(function).lower(query, query, query).compile().memory_analysis().temp_size_in_bytes
        assert used <= limit * length * heads * width * 4


def test_half_precision_is_summed_in_float32() -> None:
    arrays = Problem(length=600, width=16, value_width=16).arrays(np.float32)
    half = jax.tree.map(lambda array: array.astype(jnp.bfloat16), arrays)
    output, state = in_chunks("xla", 64)(half)
    want, memory, _ = recurrence(**jax.tree.map(lambda array: np.asarray(array, np.float64), half))
    assert output.dtype == jnp.bfloat16
    assert state.memory.dtype == jnp.float32
    # A rounding of the output, not of the sums.
    assert worst(output, want) < 2**-8 * np.abs(want).max()
    np.testing.assert_allclose(state.memory, memory, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"log_decay": jnp.zeros(3)}, ValueError, "log_decay must broadcast"),
        ({"delta_rate": jnp.zeros((2, 7, 2))}, ValueError, "delta_rate must broadcast"),
        ({"log_decay": jnp.zeros(2, int)}, TypeError, "log_decay must be floating"),
        ({"delta_rate": jnp.ones(2), "normalise": True}, ValueError, "normalise"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"implementation": "cuda"}, ValueError, "implementation must be"),
        ({"state": kernels.LinearState.zeros((2,), 2, 4, 3)}, ValueError, "state must have memory"),
    ],
)
@pytest.mark.usefixtures("library_checks")
def test_wrong_arguments_are_named(options: dict[str, Any], error: type[Exception], match: str) -> None:
    arrays = Problem(decay=None).arrays(np.float32)
    with pytest.raises(error, match=match):
        kernels.causal_linear_attention(**arrays, **options)
    with pytest.raises(ValueError, match="same length"):
        kernels.causal_linear_attention(arrays["query"][:, :4], arrays["key"], arrays["value"])
