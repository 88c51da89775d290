"""Generators and victims of all seeds side by side, as stages of a run: what was finished before is not redone."""

import logging
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.trigger_optimisation.alternation import (
    Alternation,
    Similarities,
    alternate,
    initial,
    levels,
)
from experiments.trigger_optimisation.config import (
    BLTO,
    FROZEN_CLEAN,
    FROZEN_RANDOM,
    HALF,
    SURROGATE,
    Config,
)
from experiments.trigger_optimisation.contrastive import Parameters, Training, begin, learning
from experiments.trigger_optimisation.data import Parts
from experiments.trigger_optimisation.triggers import LEVELS, fixed, rounded
from experiments.trigger_optimisation.victims import Victim, Watched, train_victim, which_are_watched
from jattn.runs import Run

log = logging.getLogger("jattn")

SeedKeys = Key[Array, " seeds"]
Stacked = Float[Array, "seeds count side side channels"]


class Pictures(NamedTuple):
    """With a trigger, at multiples of 1/255, and an axis of seeds.

    Attributes:
      pre_training: the first `poisoned` alone; the others are clean.
      validation, test: all.
    """

    pre_training: Stacked
    validation: Stacked
    test: Stacked


class Programs:
    """The compiled programs, each made when it is first needed; all map over seeds.

    Attributes:
      parts: with a leading axis of seeds.
    """

    def __init__(self, config: Config, parts: Parts):
        self.config, self.parts = config, parts
        self.channels = parts.pre_training.images.shape[-1]
        self._periods: dict[str, Any] = {}
        self._victims: dict[tuple[str, str], Any] = {}
        self._begin: dict[str, Any] = {}
        self._trigger = jax.jit(jax.vmap(self._with_trigger, (0, None, 0, 0)))
        self._initial = jax.jit(jax.vmap(partial(initial, config, self.channels)))

    def begin(self, encoder: str, key: SeedKeys) -> Training:
        """Untrained learners; they are alike for all methods, and take longer to compile than to train for a while."""
        if encoder not in self._begin:
            how = learning(self.config, SURROGATE, encoder, self.channels, 1)
            self._begin[encoder] = jax.jit(jax.vmap(partial(begin, how, encoder, self.channels)))
        return self._begin[encoder](key)

    def pictures(self, arm: str, generator: Any) -> Pictures:
        """Images with the trigger of an arm. Args: generator: None where none is learned."""
        pre_training, validation, test = (
            each.images for each in (self.parts.pre_training, self.parts.validation, self.parts.test)
        )
        ends = self.config.poisoned, self.config.poisoned + validation.shape[1]
        plain = jnp.concatenate([pre_training[:, : self.config.poisoned], validation, test], axis=1)
        radius = self.config.radius(arm)
        epsilon = radius / LEVELS
        if generator is None:
            wanted = jax.vmap(lambda images: fixed(arm)(images, epsilon))(plain)
        else:
            wanted = self._trigger(self.parts, epsilon, generator, plain)
        poisoned, validation, test = jnp.split(rounded(plain, wanted, radius), ends, axis=1)
        poisoned = jnp.concatenate([poisoned, pre_training[:, self.config.poisoned :]], axis=1)
        return Pictures(poisoned, validation, test)

    def _with_trigger(self, parts: Parts, epsilon: Any, generator: Any, images: Array) -> Array:
        return levels(self.config, parts, epsilon).triggered(generator, images)

    def learn_generator(self, run: Run, arm: str, key: SeedKeys, frozen: Parameters | None = None) -> Any:
        """The generator's parameters after all rounds, from the newest checkpoint.

        Args:
          frozen: parameters of the surrogates of an arm whose surrogates are not trained.
        """
        config = self.config
        epsilon = config.radius(arm) / LEVELS
        kind = BLTO if arm == HALF else FROZEN_CLEAN if arm == FROZEN_RANDOM else arm  # which have one program
        if kind not in self._periods:
            self._periods[kind] = jax.jit(jax.vmap(partial(self._period, arm), (0, None, 0, 0, 0, 0)))
        state = start = self._initial(key)
        with run.stage(f"generator_{arm}") as stage:
            restored = stage.restore(state)
            done = 0 if restored is None else restored.step // config.period
            state = state if restored is None else restored.state
            for period in range(done, config.rounds // config.period):
                fresh = jax.vmap(lambda key, number=2**31 + 1 + period: jax.random.fold_in(key, number))(key)
                training = self.begin(config.encoder, fresh)
                if frozen is not None:
                    training = training._replace(parameters=frozen)
                state, found = self._periods[kind](self.parts, epsilon, start.generator, state, training, key)
                measured = {name: np.asarray(values) for name, values in found._asdict().items()}
                for index in range(config.period):
                    at = {name: values[:, index] for name, values in measured.items()}
                    stage.metrics.write(period * config.period + index + 1, at)
                stage.save((period + 1) * config.period, state, {}, {})
                reached = measured["after"][:, -1].mean()
                log.info("%s: round %d of %d, S %.3f", arm, (period + 1) * config.period, config.rounds, reached)
                stage.wait()
                run.stop_if_asked()
        return state.generator

    def _period(
        self, arm: str, parts: Parts, epsilon: Any, start: Any, state: Alternation, training: Training, key: Any
    ) -> tuple[Alternation, Similarities]:
        return alternate(arm, levels(self.config, parts, epsilon), start, state, training, key)

    def train_victims(self, run: Run, arm: str, method: str, encoder: str, pictures: Pictures, key: SeedKeys) -> Victim:
        """Victims of all seeds; from the stage, if it is done."""
        config, validation = self.config, self.parts.validation
        how = learning(config, method, encoder, self.channels, config.victim_steps)
        chosen = [which_are_watched(labels, config.target) for labels in np.asarray(validation.labels)]
        others, of_target = (np.stack(numbers) for numbers in zip(*chosen, strict=True))
        watched = Watched(
            *(
                jnp.take_along_axis(images, which[:, :, None, None, None], axis=1)
                for images, which in (
                    (validation.images, others), (pictures.validation, others), (validation.images, of_target),
                )
            )
        )  # fmt: skip
        if (method, encoder) not in self._victims:
            self._victims[method, encoder] = jax.jit(jax.vmap(partial(train_victim, how)))
        program = self._victims[method, encoder]
        begin_key, measure_key = jnp.moveaxis(jax.vmap(jax.random.split)(key), 1, 0)
        inputs = self.begin(encoder, begin_key), pictures.pre_training, watched, measure_key
        with run.stage(f"victims_{arm}_{method}") as stage:
            restored = stage.restore(program.eval_shape(*inputs))
            if restored is not None:
                return restored.state
            made = program(*inputs)
            stage.save(config.victim_steps, made, {}, {})
            log.info(
                "%s: trained %s victims, l_align %.3f", arm, method, float(made.history.alignment[:, -1, 0].mean())
            )
            stage.wait()
        run.stop_if_asked()
        return made
