"""What training carries from step to step, and where its batches come from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Int, Key, PyTree


@no_type_check  # JAX and Orbax rebuild it with shapes, axes and more in the arrays' places
@struct.dataclass
class TrainState:
    """Everything a step reads and replaces. With seeds, every array but `step` has a leading seed axis.

    Attributes:
      step: steps taken.
      parameters: what the optimiser moves (`nnx.Param`).
      others: the model's remaining state: running statistics, the counters of its random streams.
      optimiser: the optax state.
      key: the key of generated batches; step n draws from `fold_in(key, n)`.
    """

    step: Int[Array, ""]
    parameters: nnx.State
    others: nnx.State
    optimiser: optax.OptState
    key: Key[Array, "*seeds"]


@dataclass(frozen=True)
class Generated:
    """Batches drawn inside the compiled program: a fresh one for every step and seed.

    Attributes:
      sample: key -> batch, any pytree of arrays; pure.
    """

    sample: Callable[[Key[Array, ""]], PyTree[Array]]


def create_state(
    build: Callable[[nnx.Rngs], nnx.Module],
    optimiser: optax.GradientTransformation,
    key: Key[Array, ""],
    seeds: int | None = None,
    parameters: nnx.State | None = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """Initialise a model and its optimiser, once or for several seeds side by side.

    Args:
      build: makes the model from its random streams.
      key: split into a model key and a data key, for each seed.
      seeds: None for one model without a seed axis; n for n models stacked along a leading axis.
      parameters: in place of those that the model is built with, each seed its own.

    Raises:
      ValueError: seeds below 1, a model without parameters, or given ones that do not fit it.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds must be at least 1; got {seeds}")

    def create_one(
        key: Key[Array, ""], given: nnx.State | None
    ) -> tuple[nnx.State, nnx.State, optax.OptState, Key[Array, ""]]:
        model_key, data_key = jax.random.split(key)
        _, drawn, others = nnx.split(build(nnx.Rngs(model_key)), nnx.Param, ...)
        if given is None:
            return drawn, others, optimiser.init(drawn), data_key
        want, have = (
            dict(zip(leaf_names(tree), map(jnp.shape, jax.tree.leaves(tree)), strict=True)) for tree in (drawn, given)
        )
        if differing := sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name)):
            raise ValueError(f"parameters must be those of the model that is built; they differ in {differing}")
        # Copied, because training overwrites its state's buffers, and these are the caller's.
        copied: nnx.State = jax.tree.map(jnp.copy, given)
        return copied, others, optimiser.init(copied), data_key

    graph = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    create = jax.jit(create_one if seeds is None else jax.vmap(create_one))
    made = create(key if seeds is None else jax.random.split(key, seeds), parameters)
    if not jax.tree.leaves(made[0]):
        raise ValueError("build must make a model with parameters (nnx.Param); got none")
    return graph, TrainState(jnp.int32(0), *made)


def leaf_names(tree: Any) -> list[str]:
    """A dotted name for every leaf, in the order of `jax.tree.leaves`."""
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        parts = [getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", None))) for entry in path]
        names.append(".".join(str(part) for part in parts if part not in (None, "value")))
    return names
