"""The one training loop: dispatch, record, evaluate, checkpoint; resume where a checkpoint left off."""

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jattn.distributed import on_every_device, on_one_device
from jattn.runs.checkpoints import Best
from jattn.runs.directory import Run, Stage
from jattn.settings import at_least
from jattn.train.progress import TrainingProgress
from jattn.train.state import Generated, TrainState, create_state
from jattn.train.step import Loss, build_dispatch, checked_names

log = logging.getLogger("jattn")

Evaluate = Callable[..., Mapping[str, Array]]
"""(model, *data) -> metrics, scalars or arrays; compiled, and mapped over seeds where there are seeds."""

Mapped = Callable[..., Any]
"""(fitted, *arguments, shared=()) -> results, as `Fitted.map` of a function: one program for all models alike."""

LEAVES_NAMED = 8
"""How many leaves that are not finite an error names."""


class NonFiniteError(Exception):
    """Training met an infinity or a not-a-number. The last finite state was checkpointed."""


@dataclass(frozen=True)
class Schedule:
    """How long to train and how often to do what. The last three count steps, in whole dispatches.

    Attributes:
      steps: optimisation steps in all.
      steps_per_dispatch: steps compiled into one program; metrics are recorded as their mean over it.
      evaluate_every: steps between evaluations; one is also made before the first step and after the last.
      checkpoint_every: steps between checkpoints; one is also made after the last.
      keep: how many of the newest checkpoints stay.
      best: keep the best checkpoint too, judged by a metric of the evaluation (its mean over seeds).
    """

    steps: int
    steps_per_dispatch: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 1000
    keep: int = 2
    best: Best | None = None

    def __post_init__(self) -> None:
        at_least(1, self, "steps", "steps_per_dispatch", "evaluate_every", "checkpoint_every", "keep")
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) % self.steps_per_dispatch:
                raise ValueError(
                    f"{name} must be a multiple of steps_per_dispatch = {self.steps_per_dispatch}; "
                    f"got {getattr(self, name)}"
                )
        if self.best is not None and self.checkpoint_every % self.evaluate_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of evaluate_every = {self.evaluate_every} where the best "
                f"checkpoint is kept; got {self.checkpoint_every}"
            )


@dataclass(frozen=True)
class Fitted:
    """What training ends with.

    Attributes:
      graph: the model's structure; `nnx.merge(graph, state.parameters, state.others)` is the model.
      state: the last state; its arrays have a leading seed axis when there were seeds.
      evaluation: the training's, compiled.
    """

    graph: nnx.GraphDef
    state: TrainState
    seeds: int | None
    evaluation: Mapped | None = None

    def evaluate(self, *data: Any) -> Any:
        """What was evaluated through training, on other data: of the same shapes it is the same program.

        Raises:
          ValueError: nothing was.
        """
        if self.evaluation is None:
            raise ValueError("fit must have been given what to evaluate; got None")
        return self.evaluation(self, shared=data)

    def map(self, function: Callable[..., Any], *arguments: Any, shared: tuple[Any, ...] = ()) -> Any:
        """function(model, *arguments, *shared), compiled; with seeds, for each seed's model and its arguments.

        Args:
          function: pure; returns a pytree of arrays, which come back with a leading seed axis where there are seeds.
          arguments: pytrees of arrays, with a leading seed axis where there are seeds.
          shared: pytrees of arrays that all seeds get whole.
        """
        return mapped(function)(self, *arguments, shared=shared)


def mapped(function: Callable[..., Any]) -> Mapped:
    """`Fitted.map` of a function, to be called with several fitted models."""

    programs: dict[Any, Callable[..., Any]] = {}

    def program(graph: nnx.GraphDef, seeds: int | None, own: int) -> Callable[..., Any]:
        def one(parameters: nnx.State, others: nnx.State, *arguments: Any) -> Any:
            return function(nnx.merge(graph, parameters, others), *arguments)

        def apply(*arrays: Any) -> Any:
            axes = (*(0 for _ in range(own)), *(None for _ in arrays[own:]))
            return (one if seeds is None else jax.vmap(one, in_axes=axes))(*arrays)

        return jax.jit(apply)

    def over(fitted: Fitted, *arguments: Any, shared: tuple[Any, ...] = ()) -> Any:
        graph, state, kind = fitted.graph, fitted.state, (fitted.seeds, 2 + len(arguments))
        try:
            key = (graph, *kind)
            hash(key)
        except TypeError:  # its modules have attributes without a hash; programs keep it, so that no other has its id
            key = (id(graph), *kind)
        if key not in programs:
            programs[key] = program(graph, *kind)
        return programs[key](state.parameters, state.others, *arguments, *shared)

    return over


def fit(
    run: Run,
    name: str,
    *,
    build: Callable[[nnx.Rngs], nnx.Module],
    loss: Loss,
    optimiser: optax.GradientTransformation,
    data: Generated | grain.DatasetIterator,
    key: Key[Array, ""],
    schedule: Schedule,
    seeds: int | None = None,
    evaluate: Evaluate | None = None,
    evaluate_on: tuple[Any, ...] = (),
    parameters: nnx.State | None = None,
    mesh: Mesh | None = None,
) -> Fitted:
    """Train a model to the end of its schedule as a stage of a run, from its newest checkpoint if it has one.

    Args:
      name: the stage's name: its metric record and checkpoints go by it.
      build: random streams -> NNX model.
      loss: (model, batch) -> (scalar, metrics). Every seed's own.
      data: batches generated in the program, or a Grain iterator of batches, whose position is checkpointed.
      seeds: train that many models side by side in one program; None for a single one without a seed axis.
      evaluate: (model, *data) -> metrics, called as the schedule says.
      evaluate_on: its data, pytrees of arrays.
      parameters: where training begins, instead of at what `build` draws: those of an earlier stage, say
        `fitted.state.parameters`.
      mesh: devices over which each batch is cut, of `jattn.distributed.batch_mesh`; metrics and running statistics
        are then means of theirs, and a model's random streams are the same on all. One device if None.

    Raises:
      NonFiniteError: loss, a gradient or a parameter stopped being finite; says at which step and in which leaf.
      Stopped: the run was asked to stop; everything is checkpointed.
      RunError, CheckpointError: what is in the run directory does not fit, or could not be written.
      ValueError: the stream ends before the schedule, or the evaluation lacks the metric of `best`.
    """
    graph, state = create_state(build, optimiser, key, seeds, parameters)
    generated = data if isinstance(data, Generated) else None
    stream = None if isinstance(data, Generated) else data
    dispatch = build_dispatch(graph, loss, optimiser, generated, seeds, mesh)
    state = state if mesh is None else on_every_device(state, mesh)
    evaluation = None if evaluate is None else mapped(evaluate)
    with run.stage(name, keep=schedule.keep, best=schedule.best) as stage:
        restored = stage.restore(state)
        if restored is None:
            measured = _evaluate(stage, 0, evaluation, Fitted(graph, state, seeds), evaluate_on)
            if schedule.best is not None and schedule.best.metric not in measured:
                raise ValueError(f"best.metric must be one of {sorted(measured)}; got {schedule.best.metric!r}")
        else:
            state = restored.state
            if stream is not None:
                stream.set_state(restored.sidecar["data_position"])
            if restored.step < schedule.steps:
                log.info("%s: going on from the checkpoint of step %d", name, restored.step)
        step = 0 if restored is None else restored.step
        with TrainingProgress(name, step, schedule.steps, quiet=run.quiet) as progress:
            while step < schedule.steps:
                count = min(schedule.steps_per_dispatch - step % schedule.steps_per_dispatch, schedule.steps - step)
                position = {} if stream is None else stream.get_state()
                batches = None if stream is None else _stack(_take(stream, count, step, schedule.steps))
                state, trace = dispatch(state, batches, count)
                finite = jax.device_get(trace.finite)
                if not finite.all():
                    sound = _sound_steps(finite)
                    if stream is not None:  # back to the batch that the last finite state would see next
                        stream.set_state(position)
                        for _ in range(sound):
                            next(stream)
                    _save(stage, step + sound, state, stream, {})
                    stage.wait()
                    raise NonFiniteError(_describe_non_finite(name, step + sound, finite[sound], checked_names(state)))
                step += count
                stage.metrics.write(step, {k: v.mean(axis=0) for k, v in jax.device_get(trace.metrics).items()})
                last = step == schedule.steps
                evaluating = last or step % schedule.evaluate_every == 0
                now = Fitted(graph, state, seeds)
                measured = _evaluate(stage, step, evaluation, now, evaluate_on) if evaluating else {}
                progress.update(step, float(np.mean(trace.metrics["loss"])))
                stopping = bool(run.stop_request) and not last  # looked at once: a signal may come at any moment
                if last or step % schedule.checkpoint_every == 0 or stopping:
                    _save(stage, step, state, stream, measured)
                if stopping:
                    stage.wait()
                    run.stop_if_asked()
    return Fitted(graph, on_one_device(state), seeds, evaluation)


def _evaluate(
    stage: Stage, step: int, evaluation: Mapped | None, fitted: Fitted, data: tuple[Any, ...]
) -> dict[str, float]:
    """Evaluate, record under names apart from the training's, and return the means a checkpoint can be the best by."""
    state = fitted.state
    parameters, others = on_one_device((state.parameters, state.others))
    fitted = replace(fitted, state=replace(state, parameters=parameters, others=others))
    found = {} if evaluation is None else jax.device_get(evaluation(fitted, shared=data))
    measured = {f"eval/{name}": value for name, value in found.items()}
    stage.metrics.write(step, measured)
    return {name: float(np.mean(value)) for name, value in measured.items() if np.ndim(value) <= 1}


def _save(
    stage: Stage, step: int, state: TrainState, stream: grain.DatasetIterator | None, measured: dict[str, float]
) -> None:
    stage.save(step, state, None if stream is None else stream.get_state(), measured)


def _sound_steps(finite: np.ndarray) -> int:
    """How many steps of a dispatch came before the first that met something not finite."""
    return int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))


def _describe_non_finite(stage: str, step: int, finite: np.ndarray, names: list[str]) -> str:
    leaves = [names[i] for i in np.flatnonzero(~finite.reshape(-1, len(names)).all(axis=0))]
    # A gradient spoils parameters, and all of them where its norm is clipped: the cause is told, not what follows.
    leaves = [leaf for leaf in leaves if not leaf.startswith("parameter ")] or leaves
    if len(leaves) > LEAVES_NAMED:
        leaves[LEAVES_NAMED:] = [f"and {len(leaves) - LEAVES_NAMED} more"]
    seeds = "" if finite.ndim == 1 else f" (seeds {np.flatnonzero(~finite.all(axis=-1)).tolist()})"
    return (
        f"stage {stage}, step {step + 1}: not finite: {', '.join(leaves)}{seeds}; "
        f"the state after step {step} is the newest checkpoint"
    )


def _take(stream: grain.DatasetIterator, count: int, step: int, steps: int) -> list[Any]:
    batches = list(itertools.islice(stream, count))
    if len(batches) < count:
        raise ValueError(f"data ended after {step + len(batches)} batches; the schedule asks for {steps}")
    return batches


def _stack(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *batches)
