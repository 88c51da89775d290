"""Methods against each other: the hyper-objective at the exact inner solution, by CPU seconds after compilation.

Every method has two settings, each one of three numbers, and makes all nine runs of a search on an instance of the
problem that the race is not run on; what has the least hyper-objective after as many CPU seconds is raced. For a
problem with data the hyper-objective is a loss on validation samples. The clock counts iterations alone: not the
compilation, not the start, and not the exact inner solutions by which iterates are measured.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jattn.bilevel import Method, Problem

log = logging.getLogger("jattn")


class Entrant(NamedTuple):
    """A method, with what is searched for it.

    Attributes:
      build: its two settings -> the method.
      settings: three numbers for each.
      on: name of the form of the problem that it runs on.
    """

    build: Callable[[Any, Any], Method]
    settings: tuple[tuple[float, float, float], tuple[float, float, float]]
    on: str = "whole"


class Track(NamedTuple):
    """A problem in many instances.

    Attributes:
      instance: number -> its data, a pytree of arrays of the same shapes for all; the search is on number 0.
      forms: by name, data -> the problem.
      start: data -> outer and inner variables.
      hyper_objective: data, outer variables -> the outer objective at the exact inner solution.
      way: data -> two hyper-objectives, from the first of which to the second the share of the way is counted.
    """

    instance: Callable[[int], Any]
    forms: dict[str, Callable[[Any], Problem]]
    start: Callable[[Any], tuple[Any, Any]]
    hyper_objective: Callable[[Any, Any], Array]
    way: Callable[[Any], tuple[Any, Any]]


class Lap(NamedTuple):
    """One run; the first record is the start.

    Attributes:
      seconds: of the CPU, by record.
      hyper_objective: by record; not a number where the iterate is none.
      iterations: made in all.
      outer: the last outer variables.
    """

    seconds: Float[np.ndarray, " records"]
    hyper_objective: Float[np.ndarray, " records"]
    iterations: int
    outer: Any


class Raced(NamedTuple):
    """What a method did: the settings that the search chose, and a `Lap` of every instance."""

    settings: tuple[float, float]
    laps: list[Lap]


def race(
    track: Track, entrants: dict[str, Entrant], instances: int, seconds: float, records: int, stop: Callable[[], None]
) -> Iterator[tuple[str, Raced]]:
    """One method after another, each after a search of nine settings.

    Args:
      instances: on which methods race: numbers from 1.
      seconds: CPU seconds of a run.
      records: of a run, about evenly spread over the seconds.
      stop: called between runs; raises to end.
    """
    measure, start = jax.jit(track.hyper_objective), jax.jit(track.start)
    data = [track.instance(number) for number in range(instances + 1)]
    starts = [start(each) for each in data]
    for name, entrant in entrants.items():
        begin, go = _compiled(track.forms[entrant.on], entrant)

        def run(index: int, settings: tuple[float, float], seconds: float, records: int) -> Lap:
            stop()
            state = begin(data[index], settings, *starts[index])  # noqa: B023, called before the next
            points = _timed(partial(go, data[index], settings), state, seconds, records)  # noqa: B023
            values = [float(measure(data[index], outer)) for _, _, outer in points]
            times = np.array([spent for spent, _, _ in points])
            return Lap(times, np.array(values), points[-1][1], points[-1][2])

        ends = {settings: run(0, settings, seconds, 1).hyper_objective[-1] for settings in product(*entrant.settings)}
        best = min(ends, key=lambda settings: float(np.nan_to_num(ends[settings], nan=np.inf)))
        laps = [run(number, best, seconds, records) for number in range(1, instances + 1)]
        finals = ", ".join(f"{lap.hyper_objective[-1]:.4g}" for lap in laps)
        log.info("%s with %.3g and %.3g: hyper-objective %s", name, *best, finals)
        yield name, Raced(best, laps)


def random_search(track: Track, data: Any, seconds: float, scale: float, seed: int) -> float:
    """The hyper-objective after steps in random directions, of which those are kept that make it fall.

    Exact inner solutions are on this clock, for the search makes use of them.
    """

    @jax.jit
    def one(carry: tuple, key: Array) -> tuple:
        outer, value = carry
        moved = jax.tree.map(lambda leaf: leaf + scale * jax.random.normal(key, leaf.shape), outer)
        found = track.hyper_objective(data, moved)
        return jax.tree.map(lambda new, old: jnp.where(found < value, new, old), (moved, found), (outer, value))

    outer, key = jax.jit(track.start)(data)[0], jax.random.key(seed)
    carry = (outer, jax.jit(track.hyper_objective)(data, outer))
    jax.block_until_ready(one(carry, key))
    spent, count = 0.0, 0
    while spent < seconds:
        began = time.process_time()
        carry = jax.block_until_ready(one(carry, jax.random.fold_in(key, count)))
        spent, count = spent + time.process_time() - began, count + 1
    return float(carry[1])


def seconds_to(lap: Lap, bar: float) -> float:
    """CPU seconds until the hyper-objective is at most this, between records by its straight line; inf if never."""
    below = np.flatnonzero(lap.hyper_objective <= bar)
    if not below.size:
        return np.inf
    index = below[0]
    if index == 0:
        return 0.0
    times, values = lap.seconds[index - 1 : index + 1], lap.hyper_objective[index - 1 : index + 1]
    return float(times[0] + (times[1] - times[0]) * (values[0] - bar) / (values[0] - values[1]))


def _compiled(form: Callable[[Any], Problem], entrant: Entrant) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The start and a number of iterations of a method, each compiled once for all settings and instances."""

    @jax.jit
    def begin(data: Any, settings: Any, outer: Any, inner: Any) -> Any:
        return entrant.build(*settings).init(form(data), outer, inner, jax.random.key(0))

    @jax.jit
    def go(data: Any, settings: Any, state: Any, count: Any) -> Any:
        method, problem = entrant.build(*settings), form(data)
        return jax.lax.fori_loop(0, count, lambda _, state: method.update(problem, state), state)

    return begin, go


def _timed(go: Callable[..., Any], state: Any, seconds: float, records: int) -> list[tuple[float, int, Any]]:
    """CPU seconds, iterations and outer variables by record; how many iterations one takes is found on the way."""
    jax.block_until_ready(go(state, 0))  # compiles
    points, spent, count, chunk = [(0.0, 0, state.outer)], 0.0, 0, 1
    while spent < seconds:
        began = time.process_time()
        state = jax.block_until_ready(go(state, chunk))
        spent, count = spent + time.process_time() - began, count + chunk
        if spent >= seconds / records * len(points) or spent >= seconds:
            points.append((spent, count, state.outer))
        left = seconds / records * len(points) - spent
        chunk = max(1, min(2 * chunk, round(count / max(spent, 1e-6) * left)))
    return points
