"""A bilevel problem: two objectives, constraints, projections and the data that objectives are sampled from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

Variables = PyTree[Array]
Rows = dict[str, Float[Array, " _"]]
"""One number for every constraint: under "inequality" and "equality", each only where the problem has it."""


@dataclass(frozen=True)
class Problem:
    """Minimise outer(x, y) over x, where y minimises inner(x, y) subject to inequality(x, y) <= 0, equality(x, y) = 0.

    All functions are pure. Outer and inner variables are any pytrees of arrays.

    Attributes:
      outer: (outer variables, inner variables) -> scalar; with `outer_batch`, (outer, inner, batch) -> scalar.
      inner: likewise, and `inner_batch`.
      inequality: (outer, inner) -> one axis of rows, each at most 0 where the constraint is met.
      equality: (outer, inner) -> one axis of rows, each 0 where the constraint is met.
      project_outer: outer -> the nearest outer variables that are allowed. All are, if None.
      project_inner: inner -> the nearest inner variables that are allowed, whatever the outer. All are, if None.
      project_joint: (outer, inner) -> the nearest pair that satisfies all of the above; see
        `jattn.bilevel.projections`.
      outer_batch: key -> batch, any pytree of arrays: `Blocks` for a finite data set. None if nothing is drawn.
      inner_batch: likewise, for the inner objective.
    """

    outer: Callable[..., Float[Array, ""]]
    inner: Callable[..., Float[Array, ""]]
    inequality: Callable[[Any, Any], Float[Array, " rows"]] | None = None
    equality: Callable[[Any, Any], Float[Array, " rows"]] | None = None
    project_outer: Callable[[Any], Any] | None = None
    project_inner: Callable[[Any], Any] | None = None
    project_joint: Callable[[Any, Any], tuple[Any, Any]] | None = None
    outer_batch: Callable[[Key[Array, ""]], Any] | None = None
    inner_batch: Callable[[Key[Array, ""]], Any] | None = None

    @property
    def constrained(self) -> bool:
        """Whether inner and outer variables are coupled by constraints."""
        return self.inequality is not None or self.equality is not None

    def sampled(self, key: Key[Array, ""]) -> "Problem":
        """The problem of a batch drawn for each objective: one whose objectives take variables alone."""
        outer_key, inner_key = jax.random.split(key)
        outer_batch = None if self.outer_batch is None else self.outer_batch(outer_key)
        inner_batch = None if self.inner_batch is None else self.inner_batch(inner_key)
        return self.on(outer_batch, inner_batch)

    def on(self, outer_batch: PyTree[Array] | None, inner_batch: PyTree[Array] | None) -> "Problem":
        """The problem of these batches; None for an objective that takes none."""
        return replace(
            self,
            outer=self.outer if self.outer_batch is None else partial(_on_batch, self.outer, outer_batch),
            inner=self.inner if self.inner_batch is None else partial(_on_batch, self.inner, inner_batch),
            outer_batch=None,
            inner_batch=None,
        )

    def whole(self, key: Key[Array, ""]) -> "Problem":
        """The problem to measure on: the mean over all `Blocks`; of other data one batch, drawn from the key."""

        drawn = self.sampled(key)
        return replace(
            drawn,
            outer=_mean(self.outer, self.outer_batch) if isinstance(self.outer_batch, Blocks) else drawn.outer,
            inner=_mean(self.inner, self.inner_batch) if isinstance(self.inner_batch, Blocks) else drawn.inner,
        )

    def constraints(self, outer: Variables, inner: Variables) -> Rows:
        """The rows of all constraints; empty without."""
        both = {"inequality": self.inequality, "equality": self.equality}
        return {name: rows(outer, inner) for name, rows in both.items() if rows is not None}

    def row_norms(self, outer: Variables, inner: Variables) -> Rows:
        """The norm of each row's gradient with respect to outer and inner variables; 1 where it vanishes.

        Rows are differentiated one by one, so that memory grows with the variables and not with rows times variables.
        """
        rows, pull_back = jax.vjp(self.constraints, outer, inner)

        def norms(name: str) -> Float[Array, " rows"]:
            def norm(row: Int[Array, ""]) -> Float[Array, ""]:
                one = {each: jnp.zeros_like(values) for each, values in rows.items()}
                return optax.tree.norm(pull_back(one | {name: one[name].at[row].set(1)}))

            found = jax.lax.map(norm, jnp.arange(rows[name].size))
            return jnp.where(found > 0, found, 1)

        return {name: norms(name) for name in rows}

    def scaled(self, row_norms: Rows) -> "Problem":
        """The problem whose constraint rows are divided by these: the same sets, however rows were multiplied."""

        def divided(name: str, rows: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Any] | None:
            return None if rows is None else lambda outer, inner: rows(outer, inner) / row_norms[name]

        return replace(
            self,
            inequality=divided("inequality", self.inequality),
            equality=divided("equality", self.equality),
        )

    def violation(self, outer: Variables, inner: Variables) -> Float[Array, ""]:
        """By how much the most violated row misses; 0 where all constraints are met or there are none."""
        rows = self.constraints(outer, inner)
        misses = [jnp.zeros(1)]
        if "inequality" in rows:
            misses.append(jnp.maximum(rows["inequality"], 0))
        if "equality" in rows:
            misses.append(jnp.abs(rows["equality"]))
        return jnp.concatenate(misses).max()

    def to_outer(self, outer: Variables) -> Variables:
        """Outer variables projected on those that are allowed."""
        return outer if self.project_outer is None else self.project_outer(outer)

    def to_inner(self, inner: Variables) -> Variables:
        """Inner variables projected on those that are allowed, coupled constraints apart."""
        return inner if self.project_inner is None else self.project_inner(inner)

    def to_both(self, outer: Variables, inner: Variables) -> tuple[Variables, Variables]:
        """The nearest pair that is allowed; without `project_joint`, each projected alone."""
        if self.project_joint is None:
            return self.to_outer(outer), self.to_inner(inner)
        return self.project_joint(outer, inner)


@dataclass(frozen=True)
class Blocks:
    """A finite data set cut into blocks of one size; a batch is one block, each as likely as the others.

    Attributes:
      arrays: a pytree of arrays whose first axis counts the blocks.
    """

    arrays: PyTree[Array]

    def __post_init__(self) -> None:
        counts = {jnp.shape(array)[:1] for array in jax.tree.leaves(self.arrays)}
        if len(counts) != 1 or counts == {()}:
            raise ValueError(f"arrays must have one first axis, of blocks; got first axes {sorted(counts)}")

    @property
    def count(self) -> int:
        return jax.tree.leaves(self.arrays)[0].shape[0]

    def __getitem__(self, block: Int[Array, ""] | int) -> PyTree[Array]:
        return jax.tree.map(lambda array: array[block], self.arrays)

    def __call__(self, key: Key[Array, ""]) -> PyTree[Array]:
        return self[self.draw(key)]

    def draw(self, key: Key[Array, ""]) -> Int[Array, ""]:
        """The number of a block."""
        return jax.random.randint(key, (), 0, self.count)


def product(multipliers: Rows, rows: Rows) -> Float[Array, ""]:
    """The sum of all rows, each times its multiplier; 0 without rows."""
    return jnp.asarray(0.0 + optax.tree.vdot(multipliers, rows))


def clip_multipliers(multipliers: Rows, radius: Float[Array, ""] | float = jnp.inf) -> Rows:
    """The nearest multipliers that are allowed: 0 to radius for inequalities, -radius to radius for equalities."""
    lowest = {"inequality": 0.0, "equality": -radius}
    return {name: jnp.clip(rows, lowest[name], radius) for name, rows in multipliers.items()}


def _on_batch(objective: Callable[..., Any], batch: Any, outer: Any, inner: Any) -> Any:
    return objective(outer, inner, batch)


def _mean(objective: Callable[..., Any], blocks: Blocks) -> Callable[..., Any]:
    return lambda outer, inner: jax.vmap(partial(objective, outer, inner))(blocks.arrays).mean()
