"""The case table that every implementation of attention is held to, and the truth to compare with.

The truth is computed in float64 by `oracle`: scores in one einsum, softmax by its definition, everything dense. It
shares no code with the kernels but the masks' dense arrays, which have tests of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
from kernels import masks

TILED = {
    "reference": None,
    "xla": kernels.Tiles(16, 16),
    "gpu": kernels.Tiles(16, 16),
    "tpu": kernels.Tiles(16, 128),
}
"""Tiles so small that the little cases have several of them, full, partial and empty (on a TPU at least of rows)."""
FAST_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiling is nearly all that these tests do."""


def _segments(length: int, cuts: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.searchsorted(cuts, np.arange(length), side="right").astype(np.int32))


@dataclass(frozen=True)
class Case:
    name: str
    batch: tuple[int, ...] = (2,)
    query_length: int = 37
    key_length: int = 37
    heads: int = 4
    kv_heads: int = 2
    width: int = 8
    value_width: int = 8
    dtype: Any = jnp.float32
    mask: Any = None
    bias: tuple[int, ...] | None = None
    softcap: float | None = None
    scale: float | None = None
    sink: bool = False
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def options(self) -> dict[str, Any]:
        return {"mask": self.mask, "softcap": self.softcap, "scale": self.scale}

    def arrays(self) -> dict[str, jax.Array]:
        """Query, key, value, and bias and sink where the case has them, in its dtype."""
        rng = np.random.default_rng(sum(map(ord, self.name)))
        shapes = {
            "query": (*self.batch, self.query_length, self.heads, self.width),
            "key": (*self.batch, self.key_length, self.kv_heads, self.width),
            "value": (*self.batch, self.key_length, self.kv_heads, self.value_width),
        }
        if self.bias is not None:
            shapes["bias"] = self.bias
        if self.sink:
            shapes["sink"] = (self.heads,)
        return {name: jnp.asarray(rng.normal(size=shape)).astype(self.dtype) for name, shape in shapes.items()}


PER_BATCH = np.array([[3, 9, 0], [1, 2, 8]])
TABLE = masks.BlockTable(
    # Lists of one, of some twice, of none, with what is no block; for each query head.
    np.array([[[2, 0], [1, 1], [2, 0]], [[0, 2], [3, 1], [1, 2]], [[1, 0], [0, 2], [2, -1]], [[0, 1], [2, 0], [1, 0]]]),
    np.array([[1, 2, 2], [2, 2, 1], [2, 0, 2], [2, 1, 2]]),
    rows=16,
    columns=16,
)
SHUFFLED = np.random.default_rng(3).permutation(37)
CASES = [
    Case("plain"),
    Case("causal", mask=masks.Causal("start")),
    Case("causal end, more keys", query_length=20, key_length=45, mask=masks.Causal("end")),
    Case("causal end, more queries", query_length=45, key_length=20, mask=masks.Causal("end")),
    Case("causal offset per batch", mask=masks.Causal(np.array([-3, 5]))),
    Case("window", mask=masks.Window(5, 3, "start")),
    Case("prefix or causal", mask=masks.Prefix(np.array([4, 30])) | masks.Causal("start")),
    Case("lengths, one 0", mask=masks.Lengths(np.array([0, 21]))),
    Case("padded queries too", mask=masks.Lengths(keys=np.array([9, 30]), queries=np.array([20, 37]))),
    Case("segments and causal", mask=masks.Segments(_segments(37, (5, 16, 32))) & masks.Causal("start")),
    Case("outside a window", mask=masks.Causal("start") & ~masks.Window(4, 0, "start")),
    Case("dense mask", mask=masks.Dense(np.random.default_rng(0).random((2, 4, 37, 37)) < 0.3)),
    Case("dense mask of rows", mask=masks.Dense(np.random.default_rng(1).random((1, 1, 37, 1)) < 0.5)),
    Case("blocks", mask=masks.Blocks(np.random.default_rng(2).random((2, 4, 5, 3)) < 0.5, rows=8, columns=13)),
    Case("block table", mask=TABLE & masks.Causal("start")),
    Case("block table, positions", mask=masks.At(masks.Causal("start"), SHUFFLED, SHUFFLED[::-1]) & TABLE),
    Case("where", mask=masks.Where(lambda i, j, step: (i - j) % step[0] == 0, (np.array([3]),))),
    Case("nothing to read", mask=masks.Lengths(0)),
    Case("bias of scores", bias=(2, 4, 37, 37)),
    Case("bias of heads", bias=(4, 1, 1), mask=masks.Causal("start")),
    Case("bias of keys", bias=(2, 1, 1, 37)),
    Case("bias of queries", bias=(37, 1)),
    Case("bias over batch", bias=(1, 4, 37, 37), mask=masks.Window(9, 0, "start")),
    Case("softcap", softcap=2.0, scale=1.5),
    Case("sink", sink=True, mask=masks.Lengths(np.array([0, 30]))),
    Case("everything", bias=(4, 37, 1), softcap=3.0, sink=True, scale=-0.4, mask=masks.Causal("start")),
    Case("one query", query_length=1, key_length=64),
    Case("one key", query_length=20, key_length=1),
    Case("no key", query_length=5, key_length=0),
    Case("no query", query_length=0, key_length=5),
    Case("no batch axis", batch=(), mask=masks.Causal("start")),
    Case("two batch axes", batch=(2, 3), query_length=9, key_length=9, mask=masks.Lengths(PER_BATCH)),
    Case("heads 1:1", heads=3, kv_heads=3),
    Case("one key head", heads=4, kv_heads=1),
    Case("width 32", width=32, value_width=32, mask=masks.Causal("start")),
    Case("width 64, values 32", width=64, value_width=32),
    Case("width 128", batch=(1,), heads=1, kv_heads=1, width=128, value_width=128, mask=masks.Causal("start")),
    Case("width 256", batch=(1,), heads=1, kv_heads=1, width=256, value_width=256),
    Case("odd widths", width=5, value_width=3),
    Case("bfloat16", dtype=jnp.bfloat16, mask=masks.Causal("start"), width=32, value_width=32),
    Case("float16", dtype=jnp.float16, mask=masks.Causal("start"), width=32, value_width=32),
]  # fmt: skip


def each_case(*implementations: str):
    """Parametrise a test over implementations and the table."""
    pairs = [pytest.param(case, name, id=f"{name}: {case.name}") for name in implementations for case in CASES]
    return pytest.mark.parametrize(("case", "implementation"), pairs)


def function(case: Case, implementation: str, statistics: tuple = ()):
    """Attention of a dictionary of arrays, by that implementation, in small tiles."""

    def call(arrays: dict[str, jax.Array]) -> Any:
        options = case.options | {"implementation": implementation, "tiles": TILED[implementation]}
        return kernels.attention(**arrays, **options, statistics=statistics)

    return call


def oracle(case: Case, arrays: dict[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Output, log-sum-exp and weights (*batch, heads, query_length, key_length), in the dtype of the arrays."""
    query, key, value = arrays["query"], arrays["key"], arrays["value"]
    repeats = case.heads // case.kv_heads
    key, value = jnp.repeat(key, repeats, axis=-2), jnp.repeat(value, repeats, axis=-2)
    scale = case.width**-0.5 if case.scale is None else case.scale
    scores = jnp.einsum("...qhw,...khw->...hqk", query, key) * scale
    if case.softcap is not None:
        scores = case.softcap * jnp.tanh(scores / case.softcap)
    if "bias" in arrays:
        scores = scores + arrays["bias"]
    allowed = jnp.ones(scores.shape, bool) if case.mask is None else case.mask.dense(*scores.shape)
    sink = arrays.get("sink")
    # A finite stand-in where nothing is allowed: no infinity, so no derivative of one.
    logits = jnp.where(allowed, scores, -1e30)
    if sink is not None:
        logits = jnp.concatenate([logits, jnp.broadcast_to(sink[:, None, None], (*scores.shape[:-1], 1))], axis=-1)
    there = allowed.any(-1) if sink is None else jnp.ones(scores.shape[:-1], bool)
    if logits.shape[-1] == 0:
        weights, lse = scores, jnp.full(scores.shape[:-1], -jnp.inf, scores.dtype)
    else:
        weights = jnp.where(allowed, jax.nn.softmax(logits, axis=-1)[..., : scores.shape[-1]], 0)
        lse = jnp.where(there, jax.scipy.special.logsumexp(logits, axis=-1), -jnp.inf)
    return jnp.einsum("...hqk,...khw->...qhw", weights, value), lse, weights


Transform = Callable[[Callable[[dict[str, jax.Array]], Any]], Callable[..., Any]]
"""`transform(call)` maps arrays, and directions of their shapes, to results: derivatives of the call, say."""


def value(call: Callable[..., Any]) -> Callable[..., Any]:
    """The transform that does nothing."""
    return lambda arrays, along: call(arrays)


def value_and_slope(call: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient of something of output and log-sum-exp, and both of these, by one program."""

    def loss(arrays: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        made = call(arrays)
        return pulled(lambda _: made)(arrays), made

    return lambda arrays, along: jax.grad(loss, has_aux=True)(arrays)


def forward_of_value_and_slope(call: Callable[..., Any]) -> Callable[..., Any]:
    """Those two, and how both change along the directions, by one program."""

    def everything(arrays: dict[str, jax.Array], along: dict[str, jax.Array]) -> tuple[Any, ...]:
        at, moved = jax.jvp(lambda arrays: value_and_slope(call)(arrays, along), (arrays,), (along,))
        return *at, *moved

    return everything


@cache
def expected(case: Case, transform: Transform) -> tuple[Any, Any]:
    """What a transform of output and log-sum-exp gives of dense attention: in float64, and in the case's precision."""
    arrays = case.arrays()
    along = directions(arrays)
    plain = transform(lambda arrays: oracle(case, arrays)[:2])
    dense = jax.jit(plain, compiler_options=FAST_TO_COMPILE)(arrays, along)
    with jax.enable_x64(True):
        truth = jax.jit(plain, compiler_options=FAST_TO_COMPILE)(in_float64(arrays), in_float64(along))
    return truth, dense


def against_dense(case: Case, implementation: str, transform: Transform, *factors: float) -> None:
    """Assert that a transform of an implementation is about as exact as that of dense attention.

    Args:
      factors: one for all of it, or one for each of the results.
    """
    arrays = case.arrays()
    call = function(case, implementation, ("lse",))

    def output_and_lse(arrays: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        output, found = call(arrays)
        return output, found.lse

    have = jax.jit(transform(output_and_lse), compiler_options=FAST_TO_COMPILE)(arrays, directions(arrays))
    compared = (have, *expected(case, transform))
    for got, truth, dense, factor in zip(*compared, factors, strict=True) if factors[1:] else [(*compared, *factors)]:
        assert_close(got, truth, dense, arrays, factor)


def in_float64(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: array.astype(jnp.float64) for name, array in arrays.items()}


def directions(arrays: dict[str, jax.Array], seed: int = 0) -> dict[str, jax.Array]:
    """Unit normal numbers of the arrays' shapes and dtypes."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=array.shape)).astype(array.dtype) for name, array in arrays.items()}


def pulled(call, seed: int = 1):
    """A scalar of a function's outputs that is not linear in them, so that second derivatives see all of them."""

    def loss(arrays: dict[str, jax.Array]) -> jax.Array:
        total = jnp.zeros((), jnp.float32)
        for number, leaf in enumerate(jax.tree.leaves(call(arrays))):
            weight = jnp.asarray(np.random.default_rng(seed + number).normal(size=leaf.shape), leaf.dtype)
            finite = jnp.where(leaf == -jnp.inf, 0, leaf)
            total = total + jnp.sum(weight * finite + jnp.sin(finite), dtype=jnp.promote_types(leaf.dtype, jnp.float32))
        return total

    return loss


def assert_close(have: Any, truth: Any, dense: Any, arrays: dict[str, jax.Array], factor: float = 2.0) -> None:
    """Every leaf at most `factor` times as far from the truth as dense attention of the same precision.

    The floor beside it is a few units in the last place of the largest number that takes part.
    """
    leaves = zip(jax.tree.leaves(have), jax.tree.leaves(truth), jax.tree.leaves(dense), strict=True)
    for got, want, plain in leaves:
        got, want, plain = (np.asarray(array, np.float64) for array in (got, want, plain))
        assert got.shape == want.shape
        np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
        finite = np.isfinite(want)
        assert np.isfinite(got[finite]).all()
        error, allowed = np.abs(got[finite] - want[finite]), np.abs(plain[finite] - want[finite])
        eps = float(jnp.finfo(arrays["query"].dtype).eps)
        size = max(1.0, np.abs(want[finite]).max(initial=0))
        assert error.max(initial=0) <= factor * allowed.max(initial=0) + 8 * eps * size
