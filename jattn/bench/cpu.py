"""CPU time of compiled programs on one core, and what they hold in memory."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

LEAST = 0.1
"""Seconds: shorter calls are repeated, for one alone tells more of caches that others emptied than of the program."""
Timed = Callable[[], float]
"""Runs a program once, and says how many seconds of CPU time it took."""


def gradients(attend: Callable[..., Any]) -> Callable[..., Any]:
    """(*inputs, cotangent) to the gradient of each input, and the output, so that the forward pass is not cut."""

    def both(*arguments: jax.Array) -> Any:
        *inputs, pull = arguments
        output, back = jax.vjp(attend, *inputs)
        return output, back(pull)

    return both


def timed(function: Callable[..., Any], arguments: Sequence[Any]) -> Timed:
    """A program compiled for those arguments, any pytrees of arrays, to be timed."""
    return timed_program(jax.jit(function).lower(*arguments).compile(), arguments)


def timed_program(compiled: Any, arguments: Sequence[Any]) -> Timed:
    """A compiled program, to be timed by `mean_cpu_seconds`."""
    return lambda: mean_cpu_seconds(lambda: compiled(*arguments))


def mean_cpu_seconds(function: Callable[[], Any]) -> float:
    """`cpu_seconds` of as many calls as fill `LEAST`, after one that is not counted; of one alone if that fills it."""
    spent = [cpu_seconds(function)]
    while sum(spent) < LEAST:
        spent.append(cpu_seconds(function))
    return float(np.mean(spent[1:] or spent))


def cpu_seconds(function: Callable[[], Any]) -> float:
    """What one call takes of this process, until its results are there."""
    began = time.process_time()
    jax.block_until_ready(function())
    return time.process_time() - began


def temporaries(function: Callable[..., Any], shapes: Sequence[jax.ShapeDtypeStruct]) -> int:
    """Bytes that the compiled program needs besides arguments and results."""
    analysis: Any = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def pin_to_one_core() -> None:
    """To one core, before JAX starts its threads; where the system cannot, CPU time is that of all cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
