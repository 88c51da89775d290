"""Training steps of the experiments' paper presets, to be compiled for a mesh that is not there.

jattn compile tests/experiments/paper_programs.py:program --target v5p --set experiment=lightning --set arm=lightning

Layers are alike, and compiling goes with their number: `--set layers=1` compiles a model of one.
"""

import importlib
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from jattn.distributed.batch import AXIS
from jattn.train import Generated, TrainState, create_state
from jattn.train.language import language_loss
from jattn.train.step import build_dispatch
from kernels.compile import Case


def program(experiment: str, arm: str, layers: int | None = None) -> Case:
    """One step of training from random windows, with batches cut over the devices of the preset.

    Args:
      layers: of the model; None: the preset's.
    """
    config = importlib.import_module(f"experiments.{experiment}.config").PRESETS["paper"].config
    config = config if layers is None else replace(config, layers=layers)
    build, loss, optimiser = _parts(experiment, arm, config)
    graph, state = _shapes(build, optimiser, config)

    def windows(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (config.batch_size, config.length + 1), 0, 256)

    def step(state: TrainState) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        return build_dispatch(graph, loss, optimiser, Generated(windows), config.seeds, mesh)(state, None, 1)

    return Case(step, (state,), mesh={AXIS: config.devices})


def _parts(experiment: str, arm: str, config: Any) -> Any:
    """What builds an arm's model, its loss, and its optimiser."""
    model = importlib.import_module(f"experiments.{experiment}.model")
    build = partial(model.build, config, arm)
    if experiment == "lightning":
        return build, partial(language_loss, model.losses), config.optimiser()
    if experiment == "routing_transformer":
        return build, partial(model.loss, config.commitment), config.optimiser()
    if experiment == "mixture_of_heads":
        return build, partial(model.loss, config.balance_weight), config.optimiser(config.learning_rate, config.steps)
    raise ValueError(f"experiment must have a program here; got {experiment!r}")


def _shapes(build: Any, optimiser: Any, config: Any) -> Any:
    """The model's structure, and its state in shapes: nothing of its size is made here."""
    graphs = []

    def state() -> Any:
        graph, made = create_state(build, optimiser, jax.random.key(0), config.seeds)
        graphs.append(graph)
        return made

    shapes = jax.eval_shape(state)
    return graphs[0], shapes
