"""Claims on planted numbers, bad settings, the paper's sizes in shapes, and the smoke preset."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.implicit_differentiation import (
    EXPERIMENT,
    claims,
    dictionary,
    distillation,
    precision,
    spheres,
    support_vectors,
)
from experiments.implicit_differentiation.config import (
    PARTS,
    PRESETS,
    SOLVERS,
    Catalogue,
    Config,
    Dictionary,
    Spheres,
    SupportVectors,
)
from experiments.implicit_differentiation.dictionary import Areas
from experiments.implicit_differentiation.support_vectors import Measured
from jattn.runs import open_run

SMOKE, PAPER = PRESETS["smoke"].config, PRESETS["paper"].config


def settled(path: Path, good: bool) -> dict[str, bool]:
    """Whether claims hold of numbers as the paper has them, or of such as refute it."""
    distance = np.tile(np.geomspace(1, 1e-3, 40), (3, 1))
    error = distance if good else distance**0.5
    curves = {
        "distance": distance,
        "implicit": error,
        "bound": 1.5 * distance,
        "loose": 0.5 * distance,
        "unrolled": (3 if good else 0.1) * distance,
        "one_step": np.ones_like(distance),
    }
    ones = np.ones((3, 2, 3, 3))
    last, first = 0.5 * ones, ones
    last[..., 0] *= 1.001 if good else 1.1
    slope = -0.3 * ones
    slope[..., 1] *= 1.05 if good else 2.0
    seconds = ones * np.array([1.0, 1.1, 2.0 if good else 0.9])
    seconds[:, 1, :, 2] *= 1.5 if good else 0.5
    memory = np.ones((2, 3, 3))
    doubled = np.ones((3, 3)) * np.array([1, 1, 2]) if good else 2 * np.ones((3, 3))
    measured = Measured(first, last, slope, 0.1 * ones, seconds, memory, doubled)
    accuracies = np.array([[0.9, 0.6, 0.61, 0.8]] * 3) + 0.001 * np.arange(3)[:, None]
    accuracies = accuracies if good else accuracies[:, [1, 0, 2, 3]]
    found = {
        "accuracies": accuracies,
        "fall": np.full(3, 0.1 if good else 0.9),
        "random_fall": np.full(3, 0.98),
    }
    times = {"implicit": np.ones(3), "unrolled": np.full(3, 4.0 if good else 1.5), "loss": np.full(3, 0.6)}
    areas = [Areas(0.995 if good else 0.985, 0.99, 0.99, 0.5)] * 5
    discs = {
        "by_theorem": np.full((10, 2), 1e-9 if good else 1.0),
        "bicgstab": np.full(10, 1e-9),
        "unstressed": np.full(10, 0.5),
        "unrolled": np.full((10, 2), np.nan if good else 1e-9),
    }
    with open_run(EXPERIMENT, "smoke", SMOKE, path, quiet=True) as run:
        claims.settle_precision(run, curves)
        claims.settle_catalogue(run, {"row": (1e-9 if good else 1e-3, 1.0), "another": (1e-8, 0.1)})
        claims.settle_support_vectors(run, measured)
        claims.settle_distillation(run, found, times)
        claims.settle_dictionary(run, areas)
        claims.settle_spheres(run, discs)
        return {verdict.claim.name: verdict.held for verdict in run.verdicts}


def test_claims_on_planted_numbers(tmp_path: Path) -> None:
    held = settled(tmp_path / "held", good=True)
    assert len(held) == 17
    assert all(held.values()), held
    lost = settled(tmp_path / "lost", good=False)
    assert not any(lost.values()), lost


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"parts": ("ridge",)}, r"parts must be some of .*; got \('ridge',\)"),
        ({"catalogue": Catalogue(("lasso",))}, r"catalogue.rows must be some of .*; got \('lasso',\)"),
        ({"spheres": Spheres(discs=0)}, "spheres.discs must be at least 1; got 0"),
        ({"spheres": Spheres(steps=30)}, "spheres.steps must be a multiple of its 20 records; got 30"),
        ({"dictionary": Dictionary(steps=15)}, "dictionary.steps must be a multiple of 10; got 15"),
        ({"support_vectors": SupportVectors(widths=(64, 8))}, "support_vectors.widths must be at least two"),
    ],
)
def test_bad_settings_are_named(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(Config(), **change)


def shapes(*sizes: Any) -> Any:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("way", support_vectors.WAYS)
def test_the_papers_machine_builds(name: str, way: str | None) -> None:
    part = PAPER.support_vectors
    rows, others, width = part.training, 1797 - part.training, part.widths[-1]
    data = support_vectors.Data(shapes(rows, width), shapes(rows, 10), shapes(others, width), shapes(others, 10))
    program = partial(support_vectors.hypergradient, name=name, steps=part.steps_of(name), mapping=way)
    assert jax.eval_shape(program, shapes(), data).slope.shape == ()


def test_the_papers_other_parts_build() -> None:
    problem = precision.Problem(shapes(442, 10), shapes(442), shapes(10))
    assert jax.eval_shape(partial(precision.curve, steps=PAPER.precision.steps), problem).bound.shape == (500,)

    part, classes = PAPER.distillation, jax.ShapeDtypeStruct((60_000,), jnp.int32)
    tested = shapes(10_000, 784), jax.ShapeDtypeStruct((10_000,), jnp.int32)
    images = distillation.Images(shapes(60_000, 784), classes, *tested)
    program = partial(distillation.compare, penalty=part.penalty, steps=part.steps, outer_steps=part.outer_steps)
    made = jax.eval_shape(program, images, jax.ShapeDtypeStruct((), jnp.int32))
    assert made.images.shape == (4, 10, 784)

    part = PAPER.dictionary
    model = dictionary.Model(shapes(part.atoms, 30), shapes(part.atoms), shapes())
    program = partial(dictionary.learn, code_steps=part.code_steps, steps=part.steps)
    rows = shapes(part.training, 30), shapes(part.training)
    assert jax.eval_shape(program, model, *rows, shapes(), shapes()).atoms.shape == (10, part.atoms, 30)

    part = PAPER.spheres
    program = partial(
        spheres.sensitivities, discs=part.discs, packing=part.packing, steps=part.steps, records=part.records
    )
    with jax.enable_x64(True):
        assert jax.eval_shape(program, jax.random.key(0)).differences.shape == (128, 2)


def ran(config: Config, path: Path) -> tuple[int, set[str]]:
    """The number of claims, and the figures."""
    with open_run(EXPERIMENT, "smoke", config, path, quiet=True) as run:
        EXPERIMENT.run(config, run)
        return len(run.verdicts), {figure.stem for figure in (path / "figures").glob("*.svg")}


def test_the_smoke_preset_runs(tmp_path: Path) -> None:
    assert ran(SMOKE, tmp_path / "run") == (4, {"precision", "catalogue"})


@pytest.mark.slow
def test_all_parts_run(tmp_path: Path) -> None:
    made, figures = ran(replace(SMOKE, parts=PARTS), tmp_path / "run")
    assert made == 17
    assert figures == {*PARTS, "sensitivities", "packing"} - {"spheres"}
