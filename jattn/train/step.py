"""The compiled program: several optimisation steps in one dispatch, on buffers it may overwrite."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, PyTree

from jattn.distributed import mean_over_batch
from jattn.train.state import Generated, TrainState, leaf_names

Loss = Callable[[Any, PyTree[Array]], tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]]
"""(model, batch) -> (scalar to minimise, metrics to record)."""


class Trace(NamedTuple):
    """What the steps of one dispatch leave: metrics with a step axis first, and which leaves stayed finite."""

    metrics: dict[str, Array]
    finite: Bool[Array, "steps *seeds leaves"]


def build_dispatch(
    graph: nnx.GraphDef,
    loss: Loss,
    optimiser: optax.GradientTransformation,
    data: Generated | None,
    seeds: int | None,
    mesh: Mesh | AbstractMesh | None = None,
) -> Callable[[TrainState, PyTree[Array] | None, int], tuple[TrainState, Trace]]:
    """The jitted function (state, batches, steps) -> (state, trace).

    The state's buffers are donated. Batches are None for generated data, else a pytree whose arrays have a step
    axis first; all seeds see the same ones. Once anything turns non-finite the state stays what it was before that
    step, for all seeds, through the end of the dispatch. With a mesh every device has the whole state, and computes the
    gradient of its part of the batch.
    """

    def gradient_of(models: tuple[nnx.State, nnx.State], batch: Any) -> tuple[nnx.State, Any]:
        parameters, others = models

        def objective(parameters: nnx.State) -> tuple[Array, tuple[dict[str, Array], nnx.State]]:
            # Copied, because running statistics and random counters are updated at this level of tracing.
            model = nnx.merge(graph, parameters, others, copy=True)
            value, metrics = loss(model, batch)
            return value, ({"loss": value, **metrics}, nnx.state(model, nnx.Not(nnx.Param)))

        return jax.grad(objective, has_aux=True)(parameters)

    differentiate = gradient_of if mesh is None else mean_over_batch(gradient_of, mesh)

    def one_step(
        parameters: nnx.State, others: nnx.State, optimiser_state: optax.OptState, key: Array, step: Array, batch: Any
    ) -> tuple[tuple[nnx.State, nnx.State, optax.OptState], dict[str, Array], Array]:
        if data is not None:
            batch = data.sample(jax.random.fold_in(key, step))
        gradient, (metrics, others) = differentiate((parameters, others), batch)
        update, optimiser_state = optimiser.update(gradient, optimiser_state, parameters)
        parameters = optax.apply_updates(parameters, update)  # pyright: ignore[reportAssignmentType]
        checked = [metrics["loss"], *jax.tree.leaves(gradient), *jax.tree.leaves(parameters)]
        finite = jnp.stack([jnp.isfinite(array).all() for array in checked])
        return (parameters, others, optimiser_state), metrics, finite

    step_all: Callable[..., Any] = one_step
    if seeds is not None:
        step_all = jax.vmap(one_step, in_axes=(0, 0, 0, 0, None, None))

    @partial(jax.jit, static_argnums=2, donate_argnums=0)
    def dispatch(state: TrainState, batches: PyTree[Array] | None, steps: int) -> tuple[TrainState, Trace]:
        def body(carry: tuple[TrainState, Array], batch: Any) -> tuple[tuple[TrainState, Array], Trace]:
            state, sound = carry
            old = (state.parameters, state.others, state.optimiser)
            new, metrics, finite = step_all(
                state.parameters, state.others, state.optimiser, state.key, state.step, batch
            )
            sound = sound & finite.all()
            # Fused with the optimiser's own update, which reads the old values anyway.
            parameters, others, optimiser_state = jax.tree.map(
                lambda now, before: jnp.where(sound, now, before), new, old
            )
            state = TrainState(state.step + sound, parameters, others, optimiser_state, state.key)
            return (state, sound), Trace(metrics, finite)

        (state, _), trace = jax.lax.scan(body, (state, jnp.bool_(True)), batches, length=steps)
        return state, trace

    return dispatch


def checked_names(state: TrainState) -> list[str]:
    """Names of what `Trace.finite` reports on, in its order."""
    names = leaf_names(state.parameters)
    return ["loss", *(f"gradient of {name}" for name in names), *(f"parameter {name}" for name in names)]
