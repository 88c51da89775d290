"""Victims of all seeds, examined: their features, and what a probe and defences make of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.trigger_optimisation.config import SURROGATE, Config
from experiments.trigger_optimisation.contrastive import Images, Parameters, learning
from experiments.trigger_optimisation.data import Parts
from experiments.trigger_optimisation.defences import (
    Examined,
    Head,
    Scores,
    Seen,
    examine,
    fine_tune,
    fit_probe,
    one_of_each,
    score,
)

Stacked = Float[Array, "seeds count side side channels"]


class Examination:
    """`examine` of every seed's victim; its programs are compiled once for each architecture.

    Attributes:
      parts: with a leading axis of seeds.
    """

    def __init__(self, config: Config, parts: Parts):
        self.config, self.parts = config, parts
        self.labels = [np.asarray(each.labels) for each in (parts.pre_training, parts.probe, parts.test)]
        self.classes = 1 + max(int(each.max()) for each in self.labels)
        self._programs: dict[str, tuple[Callable, Callable]] = {}

    def __call__(
        self,
        encoder: str,
        parameters: Parameters,
        pre_training: Stacked,
        triggered: Float[Array, "seeds test side side channels"],
    ) -> list[Examined]:
        """By seed. Args: pre_training: as victims saw it; triggered: test images."""
        images = jnp.concatenate([pre_training, self.parts.probe.images, self.parts.test.images, triggered], axis=1)
        return [self._one(encoder, seed, *_of_seed((parameters, images), seed)) for seed in range(self.config.seeds)]

    def by_probe(
        self,
        encoder: str,
        parameters: Parameters,
        triggered: Float[Array, "seeds test side side channels"],
    ) -> list[Scores]:
        """By seed, of a probe fitted to clean images alone. Args: triggered: test images."""
        features = self._of(encoder)[0]
        found = []
        for seed in range(self.config.seeds):
            one, parts, with_trigger = _of_seed((parameters, self.parts, triggered), seed)
            images = jnp.concatenate([parts.probe.images, parts.test.images, with_trigger])
            ends = np.cumsum([len(parts.probe.images), len(parts.test.images)])
            probe, clean, changed = np.split(np.asarray(features(one, images)), ends)
            head = fit_probe(probe, self.labels[1][seed], self.classes)
            found.append(score(head(clean), head(changed), self.labels[2][seed], self.config.target))
        return found

    def _of(self, encoder: str) -> tuple[Callable, Callable]:
        if encoder not in self._programs:
            how = learning(self.config, SURROGATE, encoder, self.parts.probe.images.shape[-1], 1)
            self._programs[encoder] = jax.jit(how.features), jax.jit(partial(fine_tune, how))
        return self._programs[encoder]

    def _one(self, encoder: str, seed: int, parameters: Parameters, images: Images) -> Examined:
        features, tuning = self._of(encoder)
        labels = (self.labels[0][seed], self.labels[1][seed], self.labels[2][seed])
        ends = np.cumsum([len(each) for each in labels])
        chosen = one_of_each(labels[1], self.config.tuned)

        def see(parameters: Parameters) -> Seen:
            return Seen(*np.split(np.asarray(features(parameters, images), np.float64), ends))

        def tune(head: Head) -> tuple[Seen, Head]:
            tuned, moved = tuning(parameters, head, images[ends[0] + chosen], labels[1][chosen])
            return see(tuned), Head(*map(np.asarray, moved))

        return examine(self.config, see(parameters), labels, tune, self.classes)


def _of_seed(tree: Any, seed: int) -> Any:
    return jax.tree.map(lambda each: each[seed], tree)
