"""Implicit differentiation: solutions differentiated by what holds at them, against unrolled solvers and differences.

    jattn run implicit_differentiation      six parts, on data that come with scikit-learn, and on packed discs

Each part is a file of its own: `precision` (ridge, diabetes data, theorem 1), `catalogue` (every optimality condition),
`support_vectors` (a penalty, digits), `distillation` (ten learned images, digits), `dictionary` (sparse codes, breast-
cancer samples) and `spheres` (packed discs). Times are of CPU, and are the only numbers that another run does not
repeat.

Read in this order: config, claims, the parts, figures.
"""

import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.implicit_differentiation import (
    catalogue,
    claims,
    dictionary,
    distillation,
    figures,
    precision,
    spheres,
    support_vectors,
)
from experiments.implicit_differentiation.config import PARTS, PRESETS, Config
from jattn.bench.cpu import timed
from jattn.bench.interleave import interleave
from jattn.runs import Experiment, Paper, Run

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Part after part; the first two and the last in double precision."""
    parts = (_precision, _catalogue, _support_vectors, _distillation, _dictionary, _spheres)
    results = {}
    for name, part in zip(PARTS, parts, strict=True):
        if name not in config.parts:
            continue
        run.stop_if_asked()
        results[name] = part(config, run)
        log.info("%s done", name.replace("_", " "))
        run.save_results(results)


def _precision(config: Config, run: Run) -> Any:
    with jax.enable_x64(True):
        seeds, steps = range(config.seed, config.seed + config.precision.seeds), config.precision.steps
        found = _stacked([precision.curve(precision.problem(seed), steps) for seed in seeds])
    claims.settle_precision(run, found)
    caption = "Ridge: error of Jacobians against the distance from the solution, after each step of the solver."
    run.figure("precision", figures.error_by_distance(found), caption)
    return {name: values[:, -1].tolist() for name, values in found.items()}


def _catalogue(config: Config, run: Run) -> Any:
    with jax.enable_x64(True):
        rows = catalogue.rows()
        found = {name: catalogue.errors(rows[name]()) for name in config.catalogue.rows}
    claims.settle_catalogue(run, found)
    caption = "Every row of the catalogue: largest error of the Jacobian over the largest entry of central differences."
    run.figure("catalogue", figures.table_of_rows(found), caption)
    return found


def _support_vectors(config: Config, run: Run) -> Any:
    part = config.support_vectors
    found = support_vectors.measure(part, config.seed, run.stop_if_asked)
    claims.settle_support_vectors(run, found)
    ways = [way or "solver's steps" for way in support_vectors.WAYS]
    drawn = figures.time_and_memory(part.widths, part.solvers, ways, found.seconds, found.bytes)
    run.figure("support_vectors", drawn, "CPU time of a hypergradient and its temporary memory, by solver.")
    return {name: values.tolist() for name, values in found._asdict().items()}


def _distillation(config: Config, run: Run) -> Any:
    part, found = config.distillation, []
    settings = {"penalty": part.penalty, "steps": part.steps}
    compare = jax.jit(partial(distillation.compare, **settings, outer_steps=part.outer_steps))
    splits = [distillation.split(config.seed + each, part.training, part.source) for each in range(part.seeds)]
    for each, data in enumerate(splits):
        run.stop_if_asked()
        found.append(jax.device_get(compare(data, jnp.int32(config.seed + each))))
        log.info("distillation, split %d: test accuracy %.3f", each, found[-1].accuracies[0])
    loss = partial(distillation.outer_loss, **settings)
    programs = {"implicit": jax.grad(loss), "unrolled": jax.grad(partial(loss, unrolled=True)), "loss": loss}
    arguments = jnp.asarray(found[0].images[0]), splits[0]
    seconds = interleave({name: timed(each, arguments) for name, each in programs.items()}, part.rounds)
    values = _stacked(found)
    claims.settle_distillation(run, values, seconds)
    kinds: dict[str, np.ndarray] = dict(zip(("learned", "drawn", "drawn again", "means"), found[0].images, strict=True))
    run.figure("distillation", figures.images(kinds), "Ten images to learn from, one for each class, the first split.")
    numbers = {name: values[name] for name in ("accuracies", "fall", "random_fall")} | seconds
    return {name: each.tolist() for name, each in numbers.items()}


def _dictionary(config: Config, run: Run) -> Any:
    part, found = config.dictionary, []
    for seed in range(config.seed, config.seed + part.seeds):
        run.stop_if_asked()
        data = dictionary.split(seed, part.training, part.validation)
        found.append(dictionary.areas(data, seed, part.atoms, part.l1s, part.code_steps, part.steps))
        log.info("dictionary, split %d: %s", seed, ", ".join(f"{n} {v:.4f}" for n, v in found[-1]._asdict().items()))
    claims.settle_dictionary(run, found)
    values = _stacked(found)
    run.figure("dictionary", figures.areas(values), "Areas under the curve of every split, and their means.")
    return {name: each.tolist() for name, each in values.items()}


def _spheres(config: Config, run: Run) -> Any:
    part, found = config.spheres, []
    with jax.enable_x64(True):
        settings = {"discs": part.discs, "packing": part.packing, "steps": part.steps, "records": part.records}
        made = jax.jit(partial(spheres.sensitivities, **settings))
        for key in jax.random.split(jax.random.key(config.seed), part.starts):
            run.stop_if_asked()
            found.append(jax.device_get(made(key)))
    values = _stacked(found)
    claims.settle_spheres(run, values)
    steps = part.steps // part.records * np.arange(1.0, part.records + 1)
    drawn = figures.sensitivity_by_step(steps, values["unrolled"], values["by_theorem"])
    run.figure("sensitivities", drawn, "Discs: error of sensitivities along the minimisation, for every start.")
    diameters = np.where(np.arange(part.discs) < part.discs // 2, 1, spheres.DIAMETER)
    side = spheres.box(part.discs, part.packing)
    drawn = figures.packing(values["positions"][0], values["differences"][0], diameters, side)
    run.figure("packing", drawn, "Discs at a minimum of energy, and how they move when the smaller half grows.")
    return {name: values[name].tolist() for name in ("force", "unrolled", "by_theorem", "bicgstab", "unstressed")}


def _stacked(found: list[Any]) -> dict[str, np.ndarray]:
    """Named tuples alike, one for each repetition, by field."""
    return {name: np.stack([np.asarray(getattr(each, name)) for each in found]) for name in found[0]._fields}


EXPERIMENT = Experiment(
    name="implicit_differentiation",
    summary="Derivatives of solutions by what holds at them, against unrolling, on six problems of the paper's kinds.",
    paper=Paper(
        "Efficient and Modular Implicit Differentiation",
        "Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-López, Pedregosa, Vert",
        "NeurIPS 2022",
        "2105.15183",
    ),
    presets=PRESETS,
    run=run,
)
