"""Training steps of the experiments' paper presets, to be compiled for a mesh that is not there.

jattn compile tests/experiments/paper_programs.py:program --target v5p --set experiment=landmark --set arm=landmark
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jattn.distributed.batch import AXIS
from jattn.train import Generated, TrainState, create_state
from jattn.train.language import language_loss
from jattn.train.step import build_dispatch
from kernels.compile import Case


def program(experiment: str, arm: str) -> Case:
    """One step of training from batches of random numbers, cut over the devices of the preset."""
    config = importlib.import_module(f"experiments.{experiment}.config").PRESETS["paper"].config
    build, loss, optimiser, sample = _parts(experiment, arm, config)
    graph, state = _shapes(build, optimiser, config)

    def step(state: TrainState) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        return build_dispatch(graph, loss, optimiser, Generated(sample), config.seeds, mesh)(state, None, 1)

    return Case(step, (state,), mesh={AXIS: config.devices}, fit_only=True)


def _parts(experiment: str, arm: str, config: Any) -> Any:
    """What builds an arm's model, its loss, its optimiser, and what makes batches from keys."""
    model = importlib.import_module(f"experiments.{experiment}.model")
    build, windows = partial(model.build, config, arm), _windows(config)
    if experiment == "biformer":
        return build, partial(model.loss, config.naming), config.optimiser(), _mosaics(config)
    if experiment == "landmark":
        return build, partial(language_loss, model.losses_of(config, arm)), config.optimiser(), windows
    if experiment == "lightning":
        return build, partial(language_loss, model.losses), config.optimiser(), windows
    if experiment == "routing_transformer":
        return build, partial(model.loss, config.commitment), config.optimiser(), windows
    if experiment == "mixture_of_heads":
        optimiser = config.optimiser(config.learning_rate, config.steps)
        return build, partial(model.loss, config.balance_weight), optimiser, windows
    raise ValueError(f"experiment must have a program here; got {experiment!r}")


def _windows(config: Any) -> Callable[[jax.Array], jax.Array]:
    """Bytes."""
    return lambda key: jax.random.randint(key, (config.batch_size, config.length + 1), 0, 256)


def _mosaics(config: Any) -> Callable[[jax.Array], Any]:
    """Noise, with answers and classes drawn alike."""
    from experiments.biformer.config import ANSWERS, CLASSES, PIXELS
    from experiments.biformer.mosaics import Mosaics

    side, tiles = config.tiles * PIXELS[config.source], (config.batch_size, config.regions)
    return lambda key: Mosaics(
        jax.random.uniform(key, (config.batch_size, side, side, 1)),
        jax.random.randint(key, tiles, 0, ANSWERS),
        jax.random.randint(key, tiles, 0, CLASSES),
    )


def _shapes(build: Any, optimiser: Any, config: Any) -> Any:
    """The model's structure, and its state in shapes: nothing of its size is made here."""
    graphs = []

    def state() -> Any:
        graph, made = create_state(build, optimiser, jax.random.key(0), config.seeds)
        graphs.append(graph)
        return made

    shapes = jax.eval_shape(state)
    return graphs[0], shapes
