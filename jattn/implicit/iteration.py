"""Solvers that are steps: what unrolling and truncation differentiate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jattn.implicit.adjoint import Truncated, Unrolled


@dataclass(frozen=True)
class Iteration:
    """So many steps of a map, or fewer once it moves little.

    Attributes:
      step: (state, *outer) -> state.
      steps: at most.
      tolerance: of the inner variables' change in a step over their size, at which to stop; 0: never before.
      start: inner variables -> the state of step 0; they are the state themselves if None.
      read: state -> inner variables; the state itself if None.
    """

    step: Callable[..., Any]
    steps: int
    tolerance: float = 0.0
    start: Callable[[Any], Any] = lambda inner: inner
    read: Callable[[Any], Any] = lambda state: state

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance must not be negative; got {self.tolerance}")

    def __call__(self, init: Any, *outer: Any, **named: Any) -> Any:
        """The inner variables that it ends with; not to be differentiated in reverse if there is a tolerance."""
        return self.run(init, *outer, **named)[0]

    def run(self, init: Any, *outer: Any, **named: Any) -> tuple[Any, Int[Array, ""]]:
        """The same, and how many steps it took."""

        def unfinished(carry: tuple[Any, Any, Array]) -> Array:
            _, moved, count = carry
            return (count < self.steps) & (moved > self.tolerance)

        def step(carry: tuple[Any, Any, Array]) -> tuple[Any, Any, Array]:
            state, _, count = carry
            after = self.step(state, *outer, **named)
            old, new = self.read(state), self.read(after)
            moved = optax.tree.norm(jax.tree.map(jnp.subtract, new, old)) / jnp.maximum(optax.tree.norm(old), 1e-30)
            return after, moved, count + 1

        state = self.start(init)
        if self.tolerance == 0:
            return self.read(self._run(state, self.steps, *outer, **named)), jnp.int32(self.steps)
        infinite = jnp.full_like(optax.tree.norm(init), jnp.inf)
        state, _, taken = jax.lax.while_loop(unfinished, step, (state, infinite, jnp.int32(0)))
        return self.read(state), taken

    def unrolled(self, adjoint: Unrolled | Truncated, init: Any, *outer: Any, **named: Any) -> Any:
        """All `steps` steps, whatever the tolerance, to be differentiated as `adjoint` says."""
        state = self.start(init)
        if isinstance(adjoint, Truncated):
            last = min(adjoint.steps, self.steps)
            constants = jax.lax.stop_gradient((outer, named))
            state = jax.lax.stop_gradient(self._run(state, self.steps - last, *constants[0], **constants[1]))
            return self.read(self._run(state, last, *outer, **named))
        if adjoint.segment is None:
            return self.read(self._run(state, self.steps, *outer, **named))
        whole, rest = divmod(self.steps, adjoint.segment)
        segment = jax.checkpoint(lambda state: self._run(state, adjoint.segment or 1, *outer, **named))
        state, _ = jax.lax.scan(lambda state, _: (segment(state), None), state, None, length=whole)
        return self.read(self._run(state, rest, *outer, **named))

    def _run(self, state: Any, steps: int, *outer: Any, **named: Any) -> Any:
        return jax.lax.scan(lambda state, _: (self.step(state, *outer, **named), None), state, None, length=steps)[0]


def descent(
    objective: Callable[..., Float[Array, ""]],
    optimiser: optax.GradientTransformation,
    steps: int,
    tolerance: float = 0.0,
) -> Iteration:
    """Steps of an optax optimiser down objective(inner, *outer)."""

    def step(state: tuple[Any, Any], *outer: Any, **named: Any) -> tuple[Any, Any]:
        inner, moments = state
        updates, moments = optimiser.update(jax.grad(objective)(inner, *outer, **named), moments, inner)
        return optax.apply_updates(inner, updates), moments

    return Iteration(
        step, steps, tolerance, start=lambda inner: (inner, optimiser.init(inner)), read=lambda state: state[0]
    )


def on_host(solver: Callable[..., Any]) -> Callable[..., Any]:
    """A solver of NumPy arrays, such as one of SciPy's, for compiled programs; its answer is shaped like `init`."""

    def solve(init: Any, *outer: Any, **named: Any) -> Any:
        shapes = jax.tree.map(lambda each: jax.ShapeDtypeStruct(jnp.shape(each), jnp.result_type(each)), init)

        def call(init: Any, outer: Any, named: Any) -> Any:
            found = solver(init, *outer, **named)
            return jax.tree.map(lambda each, like: each.astype(like.dtype), found, shapes)

        return jax.pure_callback(call, shapes, init, outer, named, vmap_method="sequential")

    return solve
