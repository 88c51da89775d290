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
) -> tuple[nnx.GraphDef, TrainState]:
    """Initialise a model and its optimiser, once or for several seeds side by side.

    Args:
      build: makes the model from its random streams.
      key: split into a model key and a data key, for each seed.
      seeds: None for one model without a seed axis; n for n models stacked along a leading axis.

    Raises:
      ValueError: seeds below 1, or a model without parameters.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds must be at least 1; got {seeds}")

    def create_one(key: Key[Array, ""]) -> tuple[nnx.State, nnx.State, optax.OptState, Key[Array, ""]]:
        model_key, data_key = jax.random.split(key)
        _, parameters, others = nnx.split(build(nnx.Rngs(model_key)), nnx.Param, ...)
        return parameters, others, optimiser.init(parameters), data_key

    graph = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    create = jax.jit(create_one if seeds is None else jax.vmap(create_one))
    parameters, others, optimiser_state, data_key = create(key if seeds is None else jax.random.split(key, seeds))
    if not jax.tree.leaves(parameters):
        raise ValueError("build must make a model with parameters (nnx.Param); got none")
    return graph, TrainState(jnp.int32(0), parameters, others, optimiser_state, data_key)


def leaf_names(tree: Any) -> list[str]:
    """A dotted name for every leaf, in the order of `jax.tree.leaves`."""
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        parts = [getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", None))) for entry in path]
        names.append(".".join(str(part) for part in parts if part not in (None, "value")))
    return names
