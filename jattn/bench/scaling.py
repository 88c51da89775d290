"""Time and memory of mechanisms against length: table, figure, fitted exponents, and where they overtake attention.

Float32, one batch entry, 4 heads of 64, one core, CPU time. A mechanism that outgrows the time limit is measured no
further; what is asked of longer sequences is then told from its fit.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import stats

import kernels
from jattn.bench.cpu import gradients, pin_to_one_core, timed_program
from jattn.layers.norms import layer_norm
from jattn.mechanisms.bi_level_routing import attention_over_regions, route
from jattn.mechanisms.causal_routing import causal_routing_attention
from jattn.mechanisms.landmark import landmark_attention
from jattn.mechanisms.landmark_retrieval import LandmarkCache, attend_chunk, retrieve
from jattn.mechanisms.mixture_of_heads import sparse_heads
from jattn.mechanisms.routing import routing_attention, routing_lists
from kernels import masks

HEADS, WIDTH = 4, 64
LENGTHS = tuple(2**power for power in range(9, 17))
FITTED_FROM = 4096
COLD_CALL = 0.5
"""CPU seconds; in a longer call what it begins with does not tell."""
LONGEST_CALL = 30.0
"""CPU seconds; a longer call is the last of its mechanism."""
FIGURE = Path("scaling.png")
log = logging.getLogger("jattn")


@dataclass(frozen=True)
class Mechanism:
    """What is measured, and the bar of its exponent, if there is one.

    Attributes:
      program: of a length, a function of query, key and value, (1, length, heads, width) each.
      bar: lowest and highest exponent of time.
    """

    name: str
    program: Callable[[int], Callable[..., jax.Array]]
    bar: tuple[float, float] | None = None
    backward: bool = True
    """Whether it is trained."""
    flat: float | None = None
    """The bar of the longest time a token over the shortest, of all lengths, if there is one."""


def _full(length: int) -> Callable[..., jax.Array]:
    return partial(kernels.attention, mask=masks.Causal("start"))


def _window(length: int) -> Callable[..., jax.Array]:
    return partial(kernels.attention, mask=masks.Window(511, 0, "start"))


def _linear(length: int) -> Callable[..., jax.Array]:
    decay = -(2.0 ** -jnp.arange(1.0, HEADS + 1))
    return partial(kernels.causal_linear_attention, log_decay=decay, scale=1.0)


def _listed_blocks(length: int) -> Callable[..., jax.Array]:
    """Eight blocks of 64 keys for each block of 64 queries, chosen at random."""
    blocks = length // 64
    drawn = np.argsort(np.random.default_rng(0).random((blocks, blocks)), axis=-1)[:, :8]
    table = masks.BlockTable(jnp.asarray(drawn), rows=64, columns=64)
    return lambda query, key, value: kernels.block_sparse_attention(query, key, value, table)[0]


def _routing(length: int) -> Callable[..., jax.Array]:
    """About √length clusters of as many tokens, at random centroids."""
    clusters = round(length**0.5)
    centroids = layer_norm(jax.random.normal(jax.random.key(0), (HEADS, clusters, WIDTH)))

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        normed = layer_norm(query)
        return routing_attention(normed, normed, value, routing_lists(normed, centroids, length // clusters))

    return attend


def _causal_routing(length: int) -> Callable[..., jax.Array]:
    """The last √length tokens of one of about √length clusters, at random centroids."""
    clusters = round(length**0.5)
    centroids = layer_norm(jax.random.normal(jax.random.key(0), (HEADS, clusters, WIDTH)))

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        normed = layer_norm(query)
        nearest = jnp.argmax(jnp.einsum("bnhd,hcd->bhnc", normed, centroids), axis=-1)
        return causal_routing_attention(normed, normed, value, nearest, length // clusters)

    return attend


def _half_the_heads(length: int) -> Callable[..., jax.Array]:
    """A random half of the heads for each token."""
    drawn = np.argsort(np.random.default_rng(0).random((1, length, HEADS)), axis=-1) < HEADS // 2
    return lambda query, key, value: sparse_heads(query, key, value, jnp.asarray(drawn))


def _regions(length: int) -> Callable[..., jax.Array]:
    """An image of so many tokens, in regions of 64 (or 128) of which each reads 8."""
    power = length.bit_length() - 1
    height, width = 2 ** (power // 2), 2 ** (power - power // 2)
    regions = max(1, height // 8)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        query, key, value = (array.reshape(1, height, width, HEADS * WIDTH) for array in (query, key, value))
        lists = route(query, key, regions=regions, top_k=min(8, regions**2)).lists
        return attention_over_regions(query, key, value, lists, heads=HEADS).reshape(1, length, HEADS, WIDTH)

    return attend


def _retrieval(length: int) -> Callable[..., jax.Array]:
    """64 queries that each choose 4 of length / 64 cached blocks."""
    blocks = length // 64

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        keys, values = (array.reshape(1, blocks, 64, HEADS, WIDTH) for array in (key, value))
        nothing = jnp.zeros((1, 64, HEADS, WIDTH))
        cache = LandmarkCache(keys, values, keys[:, :, 0], jnp.int32(blocks), nothing, nothing, jnp.int32(0))
        chunk = query[:, :64]
        chosen = retrieve(chunk, cache, 4)
        return attend_chunk(chunk, key[:, :64], value[:, :64], cache, chosen)[0]

    return attend


MECHANISMS = (
    Mechanism("full attention", _full),
    Mechanism("window of 512", _window),
    Mechanism("lightning attention", _linear, (0.85, 1.15), flat=1.3),
    Mechanism("8 listed blocks of 64", _listed_blocks),
    Mechanism("8 regions of an image", _regions),
    Mechanism("routing attention", _routing, (0.0, 1.6)),
    Mechanism("causal routing attention", _causal_routing, (0.0, 1.6)),
    Mechanism("half of the heads", _half_the_heads),
    Mechanism("landmark attention, blocks of 64", lambda length: partial(landmark_attention, block=64)),
    Mechanism("landmark retrieval of 64 queries", _retrieval, (0.0, 0.99), backward=False),
)


def measure_scaling() -> list[dict[str, Any]]:
    """A row for each mechanism and pass; the figure is saved in the working folder."""
    pin_to_one_core()
    measured: dict[tuple[str, bool], Measured] = {}
    passes = [(mechanism, backward) for backward in (False, True) for mechanism in MECHANISMS]
    passes = [(mechanism, backward) for mechanism, backward in passes if mechanism.backward or not backward]
    for mechanism, backward in passes:
        measured[mechanism.name, backward] = measure(mechanism, backward)
    rows = [
        row(mechanism, backward, measured[mechanism.name, backward], measured[MECHANISMS[0].name, backward])
        for mechanism, backward in passes
    ]
    figure(measured).savefig(FIGURE, dpi=150)
    log.info("wrote %s", FIGURE)
    return rows


@dataclass(frozen=True)
class Measured:
    """CPU seconds (medians) and bytes of temporaries at those lengths."""

    lengths: tuple[int, ...]
    seconds: Float[np.ndarray, " lengths"]
    memory: Float[np.ndarray, " lengths"]


def measure(mechanism: Mechanism, backward: bool) -> Measured:
    """At every length up to the first that takes too long; rounds over all lengths, as the machine's speed drifts."""
    runs, once, memory = [], [], []
    for length in LENGTHS:
        program = mechanism.program(length)
        program = gradients(program) if backward else program
        rng = np.random.default_rng(0)
        shape = (1, length, HEADS, WIDTH)
        arrays = [jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(4 if backward else 3)]
        compiled: Any = jax.jit(program).lower(*arrays).compile()
        runs.append(timed_program(compiled, arrays))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        once.append(runs[-1]())
        if once[-1] > LONGEST_CALL:
            break
    # The first call of a program may be slower; of one that takes long that is as good as nothing.
    found = [[first] if rounds(first) == 1 else [] for first in once]
    for turn in range(rounds(min(once))):
        for run, first, seconds in zip(runs, once, found, strict=True):
            if 1 < rounds(first) > turn:
                # The call before was of another length, and left caches cold: short calls are made twice.
                seconds.append(min(run(), run()) if first < COLD_CALL else run())
    lengths, medians = LENGTHS[: len(runs)], np.array([np.median(each) for each in found])
    for length, seconds in zip(lengths, medians, strict=True):
        log.info("%s, %s, %d: %.3g s", mechanism.name, _pass(backward), length, seconds)
    return Measured(lengths, medians, np.array(memory, float))


def rounds(seconds: float) -> int:
    """How often a call of that many seconds is timed: for some 20 s in all, an odd number of times."""
    return 1 if seconds > LONGEST_CALL / 3 else 3 if seconds > 4 else 5 if seconds > 1 else 15


@dataclass(frozen=True)
class Fit:
    """seconds = exp(intercept) · length ^ exponent, with the exponent's 95 % interval."""

    exponent: float
    low: float
    high: float
    intercept: float


def fit(lengths: Sequence[int], seconds: Float[np.ndarray, " lengths"]) -> Fit:
    """Least squares of logarithms; two lengths have no interval.

    Raises:
      ValueError: there are fewer than two lengths.
    """
    if len(lengths) < 2:
        raise ValueError(f"lengths must be at least two for an exponent; got {list(lengths)}")
    found: Any = stats.linregress(np.log(lengths), np.log(seconds))
    free = len(lengths) - 2
    half = float(stats.t.ppf(0.975, free) * found.stderr) if free else math.inf
    return Fit(float(found.slope), float(found.slope) - half, float(found.slope) + half, float(found.intercept))


def fit_of_long(measured: Measured) -> Fit:
    """The fit from `FITTED_FROM` tokens on, or of the two longest lengths if few are that long."""
    count = max(2, sum(length >= FITTED_FROM for length in measured.lengths))
    return fit(measured.lengths[-count:], measured.seconds[-count:])


def overtakes(one: Measured, other: Measured) -> float:
    """From which length on `one` takes less time than `other`; 0 if it does at all lengths, infinity if at none.

    Between measured lengths logarithms are on straight lines; where `other` was not measured its fit stands in.
    """
    beyond = fit_of_long(other)
    of_other = [
        math.log(other.seconds[other.lengths.index(length)])
        if length in other.lengths
        else beyond.intercept + beyond.exponent * math.log(length)
        for length in one.lengths
    ]
    ahead = np.log(one.seconds) - np.array(of_other)
    if ahead[-1] >= 0:
        return math.inf
    behind = np.flatnonzero(ahead >= 0)
    if not len(behind):
        return 0.0
    last = int(behind[-1])
    share = ahead[last] / (ahead[last] - ahead[last + 1])
    start, end = np.log(one.lengths[last]), np.log(one.lengths[last + 1])
    return float(np.exp(start + share * (end - start)))


def row(mechanism: Mechanism, backward: bool, measured: Measured, full: Measured) -> dict[str, Any]:
    """A line of the table."""
    found = fit_of_long(measured)
    last, of_query = measured.lengths[-1], measured.lengths[-1] * HEADS * WIDTH * 4
    from_length = overtakes(measured, full)
    of_token = measured.seconds / np.array(measured.lengths)
    spread = f"{of_token.max() / of_token.min():.2f}"
    if mechanism.flat is not None:
        spread += f", bar {mechanism.flat:g}: {'yes' if of_token.max() <= mechanism.flat * of_token.min() else 'NO'}"
    held = "" if mechanism.bar is None else "yes" if mechanism.bar[0] <= found.exponent <= mechanism.bar[1] else "NO"
    return {
        "mechanism": mechanism.name,
        "pass": _pass(backward),
        "exponent": f"{found.exponent:.2f} [{found.low:.2f}, {found.high:.2f}]",
        "bar": "" if mechanism.bar is None else f"{mechanism.bar[0]:g} to {mechanism.bar[1]:g}",
        "held": held,
        "most over least time a token": spread,
        "faster than full from": _length(from_length) if mechanism.name != MECHANISMS[0].name else "",
        "longest": f"{measured.seconds[-1]:.3g} s at {last}",
        "temporaries there": f"{measured.memory[-1] / of_query:.1f} queries",
    }


def _length(length: float) -> str:
    if math.isinf(length):
        return f"above {LENGTHS[-1]}"
    return f"{length:.0f}" if length else f"{LENGTHS[0]} or less"


def figure(measured: Mapping[tuple[str, bool], Measured]) -> Figure:
    """Time a token and bytes a token against length, forward and both passes."""
    drawn = Figure(figsize=(10, 7), layout="constrained")
    axes = drawn.subplots(2, 2, sharex=True)
    for (name, backward), found in measured.items():
        lengths = np.array(found.lengths)
        axes[0, int(backward)].loglog(lengths, found.seconds / lengths * 1e6, marker="o", label=name)
        axes[1, int(backward)].loglog(lengths, np.maximum(found.memory, 1) / lengths, marker="o", label=name)
    for backward in (False, True):
        axes[0, int(backward)].set_title(_pass(backward))
        axes[1, int(backward)].set_xlabel("length (tokens)")
    axes[0, 0].set_ylabel("CPU time (µs a token)")
    axes[1, 0].set_ylabel("temporaries (bytes a token)")
    axes[0, 0].legend()
    return drawn


def _pass(backward: bool) -> str:
    return "forward and backward" if backward else "forward"
