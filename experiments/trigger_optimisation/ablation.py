"""Why the attack is weak: one thing changed at a time, SimSiam, one seed, on validation images alone.

    python -m experiments.trigger_optimisation.ablation DIRECTORY

Prints a table in Markdown. The directory is a run's, for the two generators that are learned first.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.trigger_optimisation import EXPERIMENT
from experiments.trigger_optimisation.alternation import levels
from experiments.trigger_optimisation.augmentations import Augmentation, views
from experiments.trigger_optimisation.config import BLTO, BRIGHT, HALF, LAPTOP, SINUSOID, SURROGATE, Config
from experiments.trigger_optimisation.contrastive import Images, Learning, Parameters, Training, begin, learning, train
from experiments.trigger_optimisation.data import Part, Parts, split
from experiments.trigger_optimisation.defences import fit_probe, score
from experiments.trigger_optimisation.stages import Programs
from experiments.trigger_optimisation.triggers import LEVELS, fixed, rounded
from jattn.runs import open_run

CLASSES = 10
WIDE = 64
"""A second epsilon, in 255ths; the first is the run's."""
CONFIG = replace(LAPTOP, seeds=1, half_epsilon=LAPTOP.epsilon, epsilon=WIDE)
"""Whose arm BLTO has the generator of the wide epsilon, and HALF that of the run's: one program learns both."""
TRIGGERS = {
    "patch, full contrast": (BRIGHT, LEVELS),
    f"sinusoid, ε = {WIDE}": (SINUSOID, WIDE),
    f"optimised, ε = {CONFIG.half_epsilon}": (HALF, CONFIG.half_epsilon),
    f"optimised, ε = {WIDE}": (BLTO, WIDE),
}


class Setting(NamedTuple):
    """Attributes:
    changes: of the config.
    poison: images of pre-training carry triggers.
    labels: trained with the cross-entropy of labels in the contrastive loss's place.
    wrong: the images that carry triggers are of other classes, with the target's label.
    """

    name: str
    changes: dict[str, Any] = {}  # noqa: RUF012
    poison: bool = True
    labels: bool = False
    wrong: bool = False


SETTINGS = (
    Setting("as in the run: 20 poisoned", {}),
    Setting("the same, none poisoned", poison=False),
    Setting("90 poisoned, nearly all of the class", {"poisoned": 90}),
    Setting("four times the steps", {"victim_steps": 4 * LAPTOP.victim_steps}),
    Setting("views without noise and rotation", {"augmentation": Augmentation(noise=0.0, rotation=0.0)}),
    Setting("views without crop", {"augmentation": Augmentation(crop=1.0)}),
    Setting("encoder of twice the widths", {"widths": (16, 32, 64)}),
    Setting("trained with labels", labels=True),
    Setting("trained with labels, 20 of other classes labelled as the target", labels=True, wrong=True),
)


class Measured(NamedTuple):
    """Of a trigger and the victim that it poisoned.

    Attributes:
      accuracy: of a probe of clean images.
      success: by that probe.
      success_of_all: by a probe of all images of pre-training with their labels.
      moved: how far the trigger moves standardised features, over how far a view does.
    """

    accuracy: float
    success: float
    success_of_all: float
    moved: float


def with_wrong_labels(parts: Parts, config: Config) -> Parts:
    """Images of other classes first, as many as are poisoned, labelled as the target."""
    images, labels = map(np.asarray, parts.pre_training)
    chosen = np.flatnonzero(labels != config.target)[: config.poisoned]
    order = np.concatenate([chosen, np.setdiff1d(np.arange(len(labels)), chosen)])
    relabelled = np.where(np.arange(len(labels)) < config.poisoned, config.target, labels[order])
    return parts._replace(pre_training=Part(jnp.asarray(images[order]), jnp.asarray(relabelled)))


def train_with_labels(how: Learning, images: Images, labels: Int[Array, " count"], start: Training) -> Parameters:
    """The learner after its steps on the cross-entropy of labels, by a linear head that is thrown away."""
    config = how.config
    width = how.features(start.parameters, images[:1]).shape[1]
    both = start.parameters, jnp.zeros((width + 1, CLASSES))

    def loss(both: tuple, key: Array) -> Float[Array, ""]:
        batch_key, view_key = jax.random.split(key)
        chosen = jax.random.randint(batch_key, (config.batch_size,), 0, len(images))
        features = how.features(both[0], views(config.augmentation, images[chosen], view_key))
        logits = features @ both[1][:-1] + both[1][-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

    def step(carry: tuple, number: Array) -> tuple[tuple, None]:
        both, state = carry
        gradient = jax.grad(loss)(both, jax.random.fold_in(start.key, number))
        updates, state = how.optimiser.update(gradient, state, both)
        return (optax.apply_updates(both, updates), state), None

    return jax.lax.scan(step, (both, how.optimiser.init(both)), jnp.arange(config.victim_steps))[0][0][0]


def measure(setting: Setting, triggered: dict[str, Any], programs: dict[Any, Any]) -> list[Measured]:
    """By trigger.

    Args:
      triggered: functions of images.
      programs: compiled before, added to.
    """
    config = replace(LAPTOP, **setting.changes)
    how = learning(config, SURROGATE, config.encoder, 1, config.victim_steps)
    parts = split(config, 0)
    if setting.wrong:
        parts = with_wrong_labels(parts, config)
    clean, labels = parts.pre_training
    count = config.poisoned if setting.poison else 0
    images = jnp.stack(
        [jnp.concatenate([put(clean[:count]), clean[count:]]) if count else clean for put in triggered.values()]
    )
    start = jax.jit(partial(begin, how, config.encoder, 1))(jax.random.key(config.seed))
    kind = (setting.labels, str(replace(config, poisoned=LAPTOP.poisoned)))
    if kind not in programs:
        if setting.labels:
            one = partial(train_with_labels, how)
        else:

            def one(images: Images, labels: Array, start: Training) -> Parameters:
                return train(how, images, start, config.victim_steps).parameters

        programs[kind] = jax.jit(jax.vmap(one, (0, None, None)))
    victims = programs[kind](images, labels, start)
    features = jax.jit(how.features)
    of_views = jax.jit(lambda parameters, images: features(parameters, views(config.augmentation, images, start.key)))
    measured = []
    for index, put in enumerate(triggered.values()):
        parameters = jax.tree.map(lambda each, index=index: each[index], victims)
        validation, known = parts.validation.images, np.asarray(parts.validation.labels)
        plain, with_trigger = (np.asarray(features(parameters, each)) for each in (validation, put(validation)))
        heads = (
            fit_probe(np.asarray(features(parameters, each)), np.asarray(wanted), CLASSES)
            for each, wanted in ((parts.probe.images, parts.probe.labels), (images[index], labels))
        )
        found = [score(head(plain), head(with_trigger), known, config.target) for head in heads]
        scale = plain.std(axis=0) + 1e-3
        by_trigger, by_view = (
            np.sqrt((((np.asarray(each) - plain) / scale) ** 2).sum(axis=1).mean())
            for each in (with_trigger, of_views(parameters, validation))
        )
        by_all = found[1].success
        measured.append(Measured(found[0].accuracy, found[0].success, by_all, float(by_trigger / by_view)))
    return measured


def main(directory: Path) -> None:
    """Learn both generators, then train and measure victims of every setting."""
    parts = jax.tree.map(lambda each: each[None], split(CONFIG, 0))
    with open_run(EXPERIMENT, "laptop", CONFIG, directory, quiet=True) as run:
        keys = jax.random.split(jax.random.key(CONFIG.seed), 1)
        both = Programs(CONFIG, parts)
        learned = {arm: both.learn_generator(run, arm, keys) for arm in (HALF, BLTO)}

    def put(arm: str, radius: int, images: Images) -> Images:
        if arm in learned:
            generator = jax.tree.map(lambda each: each[0], learned[arm])
            wanted = levels(CONFIG, split(CONFIG, 0), radius / LEVELS).triggered(generator, images)
        else:
            wanted = fixed(arm)(images, radius / LEVELS)
        return rounded(images, wanted, radius)

    triggered = {name: partial(put, *trigger) for name, trigger in TRIGGERS.items()}
    programs: dict[Any, Any] = {}
    print("| changed | accuracy |", " | ".join(triggered), "|")
    print("| --- | --- |", " | ".join(["---"] * len(triggered)), "|")
    everything = {}
    for setting in SETTINGS:
        everything[setting.name] = found = measure(setting, triggered, programs)
        cells = [f"{each.success:.2f}, {each.success_of_all:.2f}" for each in found]
        print(
            f"| {setting.name} | {np.mean([each.accuracy for each in found]):.2f} |", " | ".join(cells), "|", flush=True
        )
    distances = (f"{each.moved:.2f}" for each in everything[SETTINGS[0].name])
    print("| moved, over a view's | |", " | ".join(distances), "|")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
