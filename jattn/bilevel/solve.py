"""One loop for all methods: start, iterate under a scan while recording, go on from a saved state."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Key, PyTree

from jattn.bilevel.method import MEASURING, Method, State
from jattn.bilevel.problem import Problem, Variables


class Records(NamedTuple):
    """What was recorded, every array with a leading axis of records.

    Attributes:
      step: iterations done.
      outer, inner: the iterates.
      outer_objective, inner_objective: their values there, over all `Blocks` or else on one batch.
      violation: by how much the most violated constraint row, as the problem gives it, misses.
      measures: the method's own figures, by name.
    """

    step: Array
    outer: PyTree[Array]
    inner: PyTree[Array]
    outer_objective: Array
    inner_objective: Array
    violation: Array
    measures: dict[str, Array]


class Trajectory(NamedTuple):
    """What `solve` returns: the records, and the last state, from which `advance` goes on."""

    records: Records
    state: State


class AtInnerSolution(NamedTuple):
    """An iterate held to the exact inner solution of its outer variables.

    Attributes:
      hyper_objective: the outer objective at the exact inner solution: what the method ought to minimise.
      outer_objective: the outer objective at the iterate, which can be smaller for want of inner optimality.
      inner_gap: the inner objective at the iterate less its minimum; below 0 only outside of the constraints.
    """

    hyper_objective: Float[Array, ""]
    outer_objective: Float[Array, ""]
    inner_gap: Float[Array, ""]


def solve(
    problem: Problem,
    method: Method,
    outer: Variables,
    inner: Variables,
    *,
    steps: int,
    key: Key[Array, ""] | None = None,
    record_every: int = 1,
) -> Trajectory:
    """Iterate a method from given variables. Pure: jit it to call it again, vmap it over keys, starts and settings.

    Args:
      outer, inner: where it starts.
      steps: iterations, a multiple of record_every.
      key: what batches are drawn from; may be left out where there are none. The same key gives the same numbers.
      record_every: iterations between records. The start is not recorded, the end is.

    Raises:
      ValueError: steps and record_every do not fit, a key is missing, an objective is no scalar, constraint rows have
        not one axis, or the problem does not suit the method.
    """
    if key is None and (problem.outer_batch is not None or problem.inner_batch is not None):
        raise ValueError("key must be given for a problem with batches; got None")
    outer, inner = jax.tree.map(jnp.asarray, (outer, inner))
    key = jax.random.key(0) if key is None else key
    _check_shapes(problem, outer, inner, key)
    _check_counts(steps, record_every)
    state = jax.jit(partial(method.init, problem))(outer, inner, key)
    return advance(problem, method, state, steps=steps, record_every=record_every)


def advance(problem: Problem, method: Method, state: State, *, steps: int, record_every: int = 1) -> Trajectory:
    """Go on from a state: bit for bit what `solve` gives that is not interrupted there.

    Raises:
      ValueError: steps and record_every do not fit.
    """
    _check_counts(steps, record_every)

    def record(state: State, _: None) -> tuple[State, Records]:
        state = jax.lax.fori_loop(0, record_every, lambda _, state: method.update(problem, state), state)
        measured = problem.whole(jax.random.fold_in(state.key, MEASURING))
        return state, Records(
            step=state.step,
            outer=state.outer,
            inner=state.inner,
            outer_objective=measured.outer(state.outer, state.inner),
            inner_objective=measured.inner(state.outer, state.inner),
            violation=problem.violation(state.outer, state.inner),
            measures=method.measures(problem.scaled(state.row_norms), state),
        )

    _examine(problem, method, state)
    # Lest what is known of the start when compiling (that it is constant, say) round the iterations differently.
    state = jax.lax.optimization_barrier(state)
    state, records = jax.lax.scan(record, state, None, length=steps // record_every)
    _examine(problem, method, state)
    return Trajectory(records, state)


def at_inner_solution(
    problem: Problem,
    inner_solver: Callable[[Any], Any],
    outer: Variables,
    inner: Variables,
    key: Key[Array, ""] | None = None,
) -> AtInnerSolution:
    """Measure an iterate against the exact inner solution, because its own outer objective misleads.

    Args:
      inner_solver: outer variables -> the inner solution, exactly.
      outer, inner: the iterate. For records, vmap.
      key: what a batch is drawn from, if data are not `Blocks`.
    """
    measured = problem.whole(jax.random.key(0) if key is None else key)
    exact = inner_solver(outer)
    return AtInnerSolution(
        hyper_objective=measured.outer(outer, exact),
        outer_objective=measured.outer(outer, inner),
        inner_gap=measured.inner(outer, inner) - measured.inner(outer, exact),
    )


def _examine(problem: Problem, method: Method, state: State) -> None:
    # Under jit and vmap there are no values to warn of: the state, or what a setting closes over, is traced.
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state)):
        with suppress(jax.errors.ConcretizationTypeError):
            method.examine(problem.scaled(state.row_norms), state)


def _check_counts(steps: int, record_every: int) -> None:
    if record_every < 1:
        raise ValueError(f"record_every must be at least 1; got {record_every}")
    if steps < 1 or steps % record_every:
        raise ValueError(f"steps must be a positive multiple of record_every = {record_every}; got {steps}")


def _check_shapes(problem: Problem, outer: Any, inner: Any, key: Any) -> None:
    """Raise before anything is computed if an objective or a constraint gives another shape than it should."""
    for name, axes in (("outer", 0), ("inner", 0), ("inequality", 1), ("equality", 1)):
        if getattr(problem, name) is None:
            continue
        shape = jax.eval_shape(
            lambda key, outer, inner, name=name: getattr(problem.sampled(key), name)(outer, inner), key, outer, inner
        ).shape
        if len(shape) != axes:
            wanted = "a scalar" if axes == 0 else "one axis of rows"
            raise ValueError(f"problem.{name} must give {wanted}; got shape {shape}")
