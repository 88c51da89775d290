"""What all methods share: the state that they carry, and how one iteration is called."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from jattn.bilevel.problem import Problem, Rows, Variables

Schedule = float | Float[Array, ""] | Callable[[Any], Any]
"""A number, or a function of the iteration, as optax's schedules are."""

STARTING, MEASURING = 2**32 - 1, 2**32 - 2
"""What is folded into a key for draws outside of the iterations; these are counted in int32."""


@no_type_check  # JAX and Orbax rebuild it with shapes, axes and more in the arrays' places
@struct.dataclass
class State:
    """Everything an iteration reads and replaces, of any method; a pytree that Orbax saves.

    Attributes:
      step: iterations done.
      key: iteration n draws from `fold_in(key, n)`.
      outer, inner: the iterates.
      memory: what the method carries besides, by name; its class says what.
      row_norms: by which constraint rows are divided; multipliers in the memory are those of divided rows.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    outer: PyTree[Array]
    inner: PyTree[Array]
    memory: dict[str, PyTree]
    row_norms: Rows


class Method:
    """A bilevel method: a frozen dataclass of its settings, all of them positive.

    A method defines `carry` and `iterate`; `init` and `update` are what callers use.

    Attributes:
      accepts: the optional parts of a problem that the method makes use of. It refuses problems with others, except
        for batches, which all methods draw.
    """

    accepts: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"{field.name} must be positive; got {value}")

    def init(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> State:
        """The state before the first iteration. Here constraint rows are scaled to gradients of norm 1.

        Raises:
          ValueError: the problem has a part that the method makes no use of, or lacks one that it needs.
        """
        optional = ("inequality", "equality", "project_outer", "project_inner", "project_joint")
        given = {name for name in optional if getattr(problem, name) is not None}
        if unused := sorted(given - self.accepts):
            raise ValueError(
                f"problem must have no {' and no '.join(unused)}, of which {type(self).__name__} makes no use"
            )
        self.require(problem)
        row_norms = problem.row_norms(outer, inner)
        memory = self.carry(problem.scaled(row_norms), outer, inner, jax.random.fold_in(key, STARTING))
        return State(jnp.int32(0), key, outer, inner, memory, row_norms)

    def update(self, problem: Problem, state: State) -> State:
        """One iteration."""
        key = jax.random.fold_in(state.key, state.step)
        outer, inner, memory = self.iterate(problem.scaled(state.row_norms), state, key)
        return State(state.step + 1, state.key, outer, inner, memory, state.row_norms)

    def require(self, problem: Problem) -> None:
        """Raise a ValueError if the problem lacks what the method needs."""

    def carry(self, problem: Problem, outer: Variables, inner: Variables, key: Key[Array, ""]) -> dict[str, Any]:
        """The memory to begin with."""
        return {}

    def iterate(self, problem: Problem, state: State, key: Key[Array, ""]) -> tuple[Variables, Variables, dict]:
        """Outer variables, inner variables and memory after one more iteration."""
        raise NotImplementedError

    def measures(self, problem: Problem, state: State) -> dict[str, Array]:
        """The method's own figures of merit, to be recorded beside the objectives."""
        return {}

    def examine(self, problem: Problem, state: State) -> None:
        """Warn of settings that do not suit what the state shows; called with arrays that have values."""


def value_at(schedule: Schedule, step: Int[Array, ""]) -> Any:
    """The value of a schedule in this iteration."""
    return schedule(step) if callable(schedule) else schedule
