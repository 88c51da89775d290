"""BLTO: a trigger against contrastive learning, optimised through its training run, and the defences beside it.

    jattn run trigger_optimisation        eleven arms, three seeds, on enlarged handwritten digits

A study of robustness on toy images: an outer variable, the generator, whose objective depends on a stochastic and
non-convex inner training run. Read in this order: config, data, augmentations, losses, encoders, triggers, contrastive,
alternation, victims, defences, examination, stages, claims, figures.
"""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.trigger_optimisation import claims, figures
from experiments.trigger_optimisation.config import (
    ARMS,
    BLTO,
    CLEAN,
    FROZEN_CLEAN,
    FROZEN_RANDOM,
    GENERATORS,
    METHODS,
    PATCH,
    PRESETS,
    SURROGATE,
    TRANSFER,
    Config,
)
from experiments.trigger_optimisation.data import Parts, split
from experiments.trigger_optimisation.defences import Examined, Scores
from experiments.trigger_optimisation.examination import Examination
from experiments.trigger_optimisation.stages import Programs, SeedKeys
from experiments.trigger_optimisation.victims import Victim
from jattn.runs import Experiment, Paper, Run

log = logging.getLogger("jattn")

SHOWN = 8
"""Images in the figure."""


def run(config: Config, run: Run) -> None:
    """Every arm's trigger is learned or made, its victims trained and examined; then claims, tables and figures."""
    parts: Parts = jax.tree.map(lambda *each: jnp.stack(each), *(split(config, seed) for seed in range(config.seeds)))
    programs, look = Programs(config, parts), Examination(config, parts)
    generators: dict[str, Any] = {}
    victims: dict[str, dict[str, Victim]] = {}
    examined: dict[str, dict[str, list[Examined]]] = {}
    triggered: dict[str, Any] = {}
    for arm in config.arms:
        keys = _keys(config, ARMS.index(arm))
        frozen = {
            FROZEN_RANDOM: lambda keys: programs.begin(config.encoder, keys).parameters,
            FROZEN_CLEAN: lambda _: victims[CLEAN][SURROGATE].parameters,
        }.get(arm, lambda _: None)(keys)
        if arm in GENERATORS:
            generators[arm] = programs.learn_generator(run, arm, keys, frozen)
        generator = generators[BLTO] if arm == TRANSFER else generators.get(arm)
        encoder = config.other_encoder if arm == TRANSFER else config.encoder
        pictures = programs.pictures(arm, generator)
        triggered[arm] = pictures.test
        victims[arm], examined[arm] = {}, {}
        for method in config.methods_of(arm):
            victim_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, METHODS.index(method))
            victims[arm][method] = programs.train_victims(run, arm, method, encoder, pictures, victim_keys)
            examined[arm][method] = look(encoder, victims[arm][method].parameters, pictures.pre_training, pictures.test)
            found = examined[arm][method]
            log.info(
                "%s, %s: accuracy %.3f, success %.3f", arm, method,
                np.mean([each.none.accuracy for each in found]), np.mean([each.none.success for each in found]),
            )  # fmt: skip
    similarities = {name: values for name, (_, values) in run.history(f"generator_{BLTO}").items()}
    begun = programs.begin(config.encoder, _keys(config, len(ARMS))).parameters
    untrained = np.array([each.accuracy for each in look.by_probe(config.encoder, begun, triggered[CLEAN])])
    fooled = {
        arm: np.mean([_success(look, config.encoder, each, triggered[BLTO]) for each in victims[arm].values()], axis=0)
        for arm in (CLEAN, PATCH)
        if arm in victims
    }
    success, accuracy = (
        {
            arm: {method: np.array([getattr(each.none, name) for each in found]) for method, found in by.items()}
            for arm, by in examined.items()
        }
        for name in ("success", "accuracy")
    )
    histories = {arm: _mean_history(by) for arm, by in victims.items()}
    ends = {arm: {name: values[:, -1] for name, values in each.items()} for arm, each in histories.items()}
    spectral = {arm: np.array([each.spectral for each in by[SURROGATE]]) for arm, by in examined.items()}
    claims.settle(run, success, accuracy, fooled, untrained, similarities, ends, spectral, config.period)
    run.save_results(
        {
            "share of poisoned images": config.poisoned_share,
            "accuracy of a probe of untrained encoders": untrained.tolist(),
            "success of the optimised trigger against victims of other arms": {
                arm: values.tolist() for arm, values in fooled.items()
            },
            "attack and defences": {
                arm: {method: _table(found) for method, found in by.items()} for arm, by in examined.items()
            },
            "clean and triggered images at the end of training": {
                arm: {name: values.tolist() for name, values in each.items()} for arm, each in ends.items()
            },
        }
    )
    run.figure("success", figures.success_of_arms(success), "Success of every arm by victim: mean and seeds.")
    names, rows = figures.attacks_and_defences(examined)
    for name, row in zip(names, rows, strict=True):
        told = (f"{head} {value:.3f}" for head, value in zip(figures.HEADINGS, row, strict=True))
        log.info("%s: %s", name, "; ".join(told).replace("\n", " "))
    run.figure(
        "defences",
        figures.table_of_defences(names, rows),
        "The attack (first column) beside what each defence leaves of it: shares of triggered test images of other "
        "classes that are taken for the target, accuracy on clean ones, and what detectors see of the poisoned images. "
        "Means of seeds.",
    )
    run.figure(
        "objective",
        figures.objective_by_round(similarities, config.period),
        "The outer objective on validation images; surrogates begin anew at grey lines. Mean and range of seeds.",
    )
    run.figure(
        "features",
        figures.features_through_training(
            {arm: histories[arm] for arm in config.arms if config.methods_of(arm) == config.methods},
            config.victim_steps,
        ),
        "Triggered (solid) and clean (dashed) validation images while victims train, mean of methods and seeds.",
    )
    shown = {arm: np.asarray(each[0, :SHOWN]) for arm, each in triggered.items() if arm != TRANSFER}
    run.figure("images", figures.images_with_triggers(shown), "Test images with every trigger; clean above.")


def _keys(config: Config, number: int) -> SeedKeys:
    """Of every seed, for one arm."""
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    return jax.random.split(key, config.seeds)


def _success(look: Examination, encoder: str, victim: Victim, triggered: Any) -> np.ndarray:
    """Of those images against a victim, by seed."""
    return np.array([each.success for each in look.by_probe(encoder, victim.parameters, triggered)])


def _mean_history(by_method: dict[str, Victim]) -> dict[str, np.ndarray]:
    """Seeds by records by clean and triggered, mean of methods."""
    found = [victim.history._asdict() for victim in by_method.values()]
    return {name: np.mean([np.asarray(each[name], np.float64) for each in found], axis=0) for name in found[0]}


def _table(found: list[Examined]) -> dict[str, Any]:
    """By what was measured, a value for each seed."""
    lists = jax.tree.map(lambda *each: [float(value) for value in each], *found)
    return {name: value._asdict() if isinstance(value, Scores) else value for name, value in lists._asdict().items()}


EXPERIMENT = Experiment(
    name="trigger_optimisation",
    summary="A trigger against contrastive learning, learned through a training run, and what defences make of it.",
    paper=Paper(
        "Backdoor Contrastive Learning via Bi-level Trigger Optimization",
        "Sun, Zhang, Lu, Chen, Wang, Chen, Lin",
        "ICLR 2024",
        "2404.07863",
    ),
    presets=PRESETS,
    run=run,
)
