"""Attention on the CPU: against PyTorch's and JAX's, against itself, and what it holds in memory.

Float32, one batch entry, 8 heads of 64, one core; CPU time, so that what else runs on the machine counts little.
"""

import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels
from jattn.bench.bound import Bound, logged, medians
from jattn.bench.cpu import Timed, gradients, pin_to_one_core, temporaries, timed
from jattn.bench.interleave import interleave
from kernels import masks

HEADS, WIDTH = 8, 64
LENGTHS = (2048, 4096, 8192, 16384)
MIDDLE = 4096
LONGEST = 65536
WINDOW = 512
ROUNDS = 5
CAUSAL = masks.Causal("start")
log = logging.getLogger("jattn")


def measure_attention() -> list[dict[str, Any]]:
    """A row for each bar: a ratio of CPU times, medians over interleaved rounds, or of bytes."""
    pin_to_one_core()
    return logged(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    yield from _against_jax()
    yield from _against_itself()
    yield from _windows()
    yield from _memory()
    yield from _against_torch()


def _against_torch() -> Iterator[dict[str, Any]]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        log.warning("left out what is measured against torch, which is not installed: pip install 'jattn[bench]'")
        return
    torch.set_num_threads(1)
    for length in LENGTHS:
        for causal in (True, False):
            mask = CAUSAL if causal else None
            for backward in (False, True):
                contenders = {
                    "jattn": _ours(length, mask, backward),
                    "torch": _of_torch(torch, length, causal, backward),
                }
                what = f"{_pass(backward)}, {'causal' if causal else 'full'}, {length}"
                seconds = interleave(contenders, min(ROUNDS, 3) if length > 8192 else ROUNDS)
                ratios = seconds["torch"] / seconds["jattn"]
                yield Bound(0.9, at_least=True).row(what, "torch, times as fast", ratios, medians(seconds))


def _against_jax() -> Iterator[dict[str, Any]]:
    length = MIDDLE
    for backward, least in ((False, 4.0), (True, 5.0)):
        theirs = partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
        contenders = {
            "jattn": _ours(length, CAUSAL, backward),
            "jax.nn": timed(gradients(theirs) if backward else theirs, _arrays(length, 4 if backward else 3)),
        }
        seconds = interleave(contenders, ROUNDS)
        ratios = seconds["jax.nn"] / seconds["jattn"]
        what = f"{_pass(backward)}, causal, {length}"
        yield Bound(least, at_least=True).row(what, "jax.nn, times as fast", ratios, medians(seconds))


def _against_itself() -> Iterator[dict[str, Any]]:
    length = MIDDLE
    query, key, value, pull = _arrays(length, 4)
    forward = partial(kernels.attention, mask=CAUSAL)
    gradient = gradients(forward)

    def with_statistic(request: Any) -> Callable[..., Any]:
        return partial(kernels.attention, mask=CAUSAL, statistics=(request,))

    programs: dict[str, Callable[..., Any]] = {
        "forward": lambda q, k, v, g: forward(q, k, v),
        "full": lambda q, k, v, g: kernels.attention(q, k, v),
        "jvp": lambda q, k, v, g: jax.jvp(forward, (q, k, v), (k, v, q)),
        "grad": gradient,
        "jvp(grad)": lambda q, k, v, g: jax.jvp(gradient, (q, k, v, g), (k, v, q, g)),
        "expected position": lambda q, k, v, g: with_statistic("expected_position")(q, k, v),
        "entropy": lambda q, k, v, g: with_statistic("entropy")(q, k, v),
        "column sums": lambda q, k, v, g: with_statistic(kernels.ColumnSums())(q, k, v),
    }
    seconds = interleave({name: timed(f, (query, key, value, pull)) for name, f in programs.items()}, ROUNDS)
    for name, against, limit in (
        ("forward", "full", 0.6),
        ("jvp", "forward", 4.0),
        ("jvp(grad)", "grad", 4.5),
        ("expected position", "forward", 1.15),
        ("entropy", "forward", 1.6),
        ("column sums", "forward", 1.6),
    ):
        ratios = seconds[name] / seconds[against]
        pair = {one: seconds[one] for one in (name, against)}
        yield Bound(limit).row(f"{name}, causal, {length}", f"its {against}", ratios, medians(pair))


def _windows() -> Iterator[dict[str, Any]]:
    mask = masks.Window(WINDOW - 1, 0, "start")
    _, short, *_, long = LENGTHS
    for backward in (False, True):
        seconds = interleave({str(length): _ours(length, mask, backward) for length in (short, long)}, 2 * ROUNDS)
        ratios = seconds[str(long)] / seconds[str(short)]
        what = f"{_pass(backward)}, window {WINDOW}, {long}"
        # Linear, and a tenth for what the first rows have less to read.
        yield Bound(1.1 * long / short).row(what, f"itself at {short}", ratios, medians(seconds))


def _memory() -> Iterator[dict[str, Any]]:
    length = 8192
    gradient = gradients(partial(kernels.attention, mask=CAUSAL))
    shapes = [jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), jnp.float32)] * 4
    first = temporaries(gradient, shapes)
    second = temporaries(lambda *a: jax.jvp(gradient, a, a), shapes)
    of_query = length * HEADS * WIDTH * 4
    name = f"temporaries, forward and backward, causal, {length}"
    yield Bound(10.0).row(name, "the query's bytes", np.array([first / of_query]), f"{first / 1e6:.0f} MB")
    yield Bound(2.0).row(
        f"temporaries, jvp(grad), causal, {length}",
        "those of grad",
        np.array([second / first]),
        f"{second / 1e6:.0f} MB",
    )
    told = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True).stdout
    found = json.loads(told.splitlines()[-1])
    yield Bound(2.0).row(
        f"peak resident set, forward and backward, causal, {LONGEST}",
        "1 GB",
        np.array([found["peak"] / 1e9]),
        f"{found['seconds']:.0f} CPU s",
    )


def run_longest() -> None:
    """Forward and backward at the longest length, and the most that this process ever held, as a line of JSON."""
    pin_to_one_core()
    seconds = timed(gradients(partial(kernels.attention, mask=CAUSAL)), _arrays(LONGEST, 4))()
    print(json.dumps({"peak": _peak_bytes(), "seconds": seconds}))


def _peak_bytes() -> int:
    """The largest resident set of this process. On Linux not `ru_maxrss`, which begins with that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _ours(length: int, mask: masks.Mask | None, backward: bool) -> Timed:
    attend = partial(kernels.attention, mask=mask)
    return timed(gradients(attend) if backward else attend, _arrays(length, 4 if backward else 3))


def _arrays(length: int, count: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shape = (1, length, HEADS, WIDTH)
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(count))


def _of_torch(torch: Any, length: int, causal: bool, backward: bool) -> Timed:
    """In torch's own layout, (batch, heads, length, width)."""
    arrays = [torch.from_numpy(np.array(array)).transpose(1, 2).contiguous() for array in _arrays(length, 4)]
    *inputs, pull = arrays
    for array in inputs:
        array.requires_grad_(backward)

    def measure() -> float:
        began = time.process_time()
        output = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=causal)
        if backward:
            torch.autograd.grad(output, inputs, pull)
        return time.process_time() - began

    return measure


def _pass(backward: bool) -> str:
    return "forward and backward" if backward else "forward"


if __name__ == "__main__":
    run_longest()
