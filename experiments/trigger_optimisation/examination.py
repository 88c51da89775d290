"""Victims of all seeds, examined: their features, and what a probe and defences make of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from experiments.trigger_optimisation.config import SURROGATE, Config
from experiments.trigger_optimisation.contrastive import Learning, Parameters, learning
from experiments.trigger_optimisation.data import Parts
from experiments.trigger_optimisation.defences import Examined, Head, Seen, examine, fine_tune, fit_probe, one_of_each


class Examination:
    """`examine` of every seed's victim; its programs are compiled once for each architecture.

    Attributes:
      parts: with a leading axis of seeds.
    """

    def __init__(self, config: Config, parts: Parts):
        self.config, self.parts = config, parts
        self.labels = [np.asarray(each.labels) for each in (parts.pre_training, parts.probe, parts.test)]
        self.classes = 1 + max(int(each.max()) for each in self.labels)
        self._programs: dict[str, tuple[Learning, Callable, Callable]] = {}

    def __call__(self, encoder: str, parameters: Parameters, pictures: tuple) -> list[Examined]:
        """By seed. Args: pictures: of pre-training, probe, test, and triggered ones, each with an axis of seeds."""
        return [self._one(encoder, seed, *_of_seed((parameters, pictures), seed)) for seed in range(self.config.seeds)]

    def accuracy(self, encoder: str, parameters: Parameters) -> Float[np.ndarray, " seeds"]:
        """Of clean probes alone."""
        features = self._of(encoder)[1]
        found = []
        for seed in range(self.config.seeds):
            one, parts = _of_seed((parameters, self.parts), seed)
            probe, test = (np.asarray(features(one, each.images)) for each in (parts.probe, parts.test))
            head = fit_probe(probe, self.labels[1][seed], self.classes)
            found.append(float((head(test) == self.labels[2][seed]).mean()))
        return np.array(found)

    def _of(self, encoder: str) -> tuple[Learning, Callable, Callable]:
        if encoder not in self._programs:
            how = learning(self.config, SURROGATE, encoder, self.parts.probe.images.shape[-1], 1)
            self._programs[encoder] = how, jax.jit(how.features), jax.jit(partial(fine_tune, how))
        return self._programs[encoder]

    def _one(self, encoder: str, seed: int, parameters: Parameters, pictures: tuple) -> Examined:
        how, features, tuning = self._of(encoder)
        labels = (self.labels[0][seed], self.labels[1][seed], self.labels[2][seed])
        chosen = one_of_each(labels[1], self.config.tuned)

        def tune(head: Head) -> tuple:
            tuned, moved = tuning(parameters, head, pictures[1][chosen], labels[1][chosen])
            return (*(np.asarray(features(tuned, each)) for each in pictures[2:]), Head(*map(np.asarray, moved)))

        seen = Seen(*(np.asarray(features(parameters, each), np.float64) for each in pictures))
        return examine(how.config, seen, labels, tune, self.classes)


def _of_seed(tree: Any, seed: int) -> Any:
    return jax.tree.map(lambda each: each[seed], tree)
