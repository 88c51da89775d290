"""The bilevel problem, and the paper's alternation between its two levels, with three ways to take the outer gradient.

| paper | here |
| --- | --- |
| psi, theta | outer: the generator's parameters; inner: the surrogate's |
| S | `similarity` |
| N, J | rounds, inner_steps |
| D_b | the first `poisoned` images of pre-training |
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from experiments.trigger_optimisation import losses
from experiments.trigger_optimisation.augmentations import views
from experiments.trigger_optimisation.config import INNER_RUNS, PENALTY, SURROGATE, TRUNCATED, Config
from experiments.trigger_optimisation.contrastive import Learning, Parameters, Training, contrast, learning
from experiments.trigger_optimisation.contrastive import step as contrastive_step
from experiments.trigger_optimisation.data import Parts
from experiments.trigger_optimisation.triggers import Generator
from jattn import implicit
from jattn.bilevel import Problem


class OuterBatch(NamedTuple):
    """Attributes:
    images: of all classes, which get the trigger.
    references: of the target class.
    key: of their views.
    """

    images: Float[Array, "batch side side channels"]
    references: Float[Array, "batch side side channels"]
    key: Key[Array, ""]


class InnerBatch(NamedTuple):
    """Attributes:
    chosen: numbers of pre-training images.
    key: of their views.
    """

    chosen: Int[Array, " batch"]
    key: Key[Array, ""]


class Inner(NamedTuple):
    """The inner variables, and the same once more where the loss takes them for constant, as SimSiam does."""

    parameters: Parameters
    held: Parameters


class Alternation(NamedTuple):
    """What is carried from period to period.

    Attributes:
      generator: parameters.
      optimiser: Adam's state.
      period: periods done.
    """

    generator: nnx.State
    optimiser: optax.OptState
    period: Int[Array, ""]


class Similarities(NamedTuple):
    """S on validation images with fixed views, round by round, at the surrogate after the round's inner steps.

    Attributes:
      before, after: the round's outer steps.
      untrained: of the generator as it was at first.
      others_before, others_after: to images of other classes than the target.
    """

    before: Float[Array, " rounds"]
    after: Float[Array, " rounds"]
    untrained: Float[Array, " rounds"]
    others_before: Float[Array, " rounds"]
    others_after: Float[Array, " rounds"]


class Levels(NamedTuple):
    """Both levels, for one seed's data.

    Attributes:
      graph: the generator's structure.
      surrogate: how the inner level trains.
    """

    config: Config
    graph: nnx.GraphDef
    surrogate: Learning
    parts: Parts
    epsilon: Float[Array, ""] | float

    def triggered(self, generator: nnx.State, images: Array) -> Array:
        return nnx.merge(self.graph, generator)(images, self.epsilon)

    def poisoned(self, generator: nnx.State) -> Array:
        """Pre-training images, the first of them triggered."""
        clean, count = self.parts.pre_training.images, self.config.poisoned
        return jnp.concatenate([self.triggered(generator, clean[:count]), clean[count:]])

    def similarity(self, generator: nnx.State, inner: Parameters, batch: OuterBatch) -> Float[Array, ""]:
        """S: the mean cosine of features of triggered images' views and views of the target class.

        Features are standardised like those of views of the images without a trigger.
        """
        images = jnp.concatenate([self.triggered(generator, batch.images), batch.references, batch.images])
        features = self.surrogate.features(inner, views(self.config.augmentation, images, batch.key))
        shown, references, clean = jnp.split(features, 3)
        return losses.cosine(losses.standardised(shown, clean), losses.standardised(references, clean))

    def problem(self, pre_training: Array | None = None) -> Problem:
        """Minimise -S over the generator, where the surrogate minimises its contrastive loss on poisoned images.

        Args:
          pre_training: those images, of the generator that the problem will be asked about; made by it if None.
        """
        size = self.config.batch_size
        images, labels = self.parts.pre_training
        of_target = (labels == self.config.target) / (labels == self.config.target).sum()

        def outer_batch(key: Key[Array, ""]) -> OuterBatch:
            key, reference_key, view_key = jax.random.split(key, 3)
            any_class = jax.random.randint(key, (size,), 0, len(images))
            references = jax.random.choice(reference_key, len(images), (size,), p=of_target)
            return OuterBatch(images[any_class], images[references], view_key)

        def inner_batch(key: Key[Array, ""]) -> InnerBatch:
            batch_key, key = jax.random.split(key)
            return InnerBatch(jax.random.randint(batch_key, (size,), 0, len(images)), key)

        def inner(generator: nnx.State, learner: Inner, batch: InnerBatch) -> Float[Array, ""]:
            shown = self.poisoned(generator) if pre_training is None else pre_training
            return contrast(self.surrogate, learner.parameters, learner.held, shown[batch.chosen], batch.key)

        return Problem(
            lambda generator, learner, batch: -self.similarity(generator, learner.parameters, batch),
            inner,
            outer_batch=outer_batch,
            inner_batch=inner_batch,
        )

    def descend(self, training: Training, generator: nnx.State, steps: int, penalty: float | None = None) -> Training:
        """Inner steps; differentiable. Args: penalty: by which the outer objective is divided to be added, if any."""
        problem = self.problem(self.poisoned(generator))

        def one(training: Training, generator: nnx.State) -> Training:
            def loss(parameters: Parameters, held: Parameters, key: Any) -> Float[Array, ""]:
                drawn, learner = problem.sampled(key), Inner(parameters, held)
                inner = drawn.inner(generator, learner)
                return inner if penalty is None else inner + drawn.outer(generator, learner) / penalty

            return contrastive_step(self.surrogate, loss, training)

        return implicit.Iteration(one, steps).unrolled(implicit.Unrolled(), training, generator)


def levels(config: Config, parts: Parts, epsilon: Float[Array, ""] | float) -> Levels:
    """Args: epsilon: the largest change of a pixel, from 0 to 1."""
    channels = parts.pre_training.images.shape[-1]
    graph = nnx.graphdef(nnx.eval_shape(lambda: Generator(config, channels, nnx.Rngs(0))))
    surrogate = learning(config, SURROGATE, config.encoder, channels, config.period * config.inner_steps)
    return Levels(config, graph, surrogate, parts, epsilon)


def outer_gradient(
    arm: str, levels: Levels, generator: nnx.State, earlier: Training, later: Training, key: Key[Array, ""]
) -> nnx.State:
    """The gradient of -S by the generator, as an arm takes it.

    The paper's, and with frozen surrogates: the direct term at `later`. Truncated: through the last `unrolled` inner
    steps, from `earlier`, on the batches that they had. Penalty: of F + penalty (f(y) - f(z)), as in F2SA and PBGD,
    where z is `later` and y descends from `earlier` on f + F / penalty.
    """
    config, problem = levels.config, levels.problem().sampled(key)

    def variables(training: Training) -> Inner:
        return Inner(training.parameters, training.parameters)

    if arm == TRUNCATED:
        return jax.grad(
            lambda generator: problem.outer(generator, variables(levels.descend(earlier, generator, config.unrolled)))
        )(generator)
    if arm != PENALTY:
        return jax.grad(problem.outer)(generator, variables(later))
    both = levels.descend(earlier, generator, config.unrolled, config.penalty)

    def penalised(generator: nnx.State) -> Float[Array, ""]:
        gap = problem.inner(generator, variables(both)) - problem.inner(generator, variables(later))
        return problem.outer(generator, variables(both)) + config.penalty * gap

    return jax.grad(penalised)(generator)


def alternate(
    arm: str, levels: Levels, start: nnx.State, state: Alternation, training: Training, key: Key[Array, ""]
) -> tuple[Alternation, Similarities]:
    """One period of rounds.

    Args:
      arm: one of `GENERATORS`.
      start: the untrained generator.
      training: the surrogate at the period's beginning. Where the arm's is frozen, it stays that.
      key: of the whole run.

    Returns:
      The state after it, and what was measured.
    """
    config = levels.config
    adam, held_out = config.outer_optimiser(), validation_batches(levels)
    key = jax.random.fold_in(key, state.period)

    def outer_step(carry: tuple, key: Key[Array, ""], earlier: Training, later: Training) -> tuple[tuple, None]:
        generator, moments = carry
        updates, moments = adam.update(outer_gradient(arm, levels, generator, earlier, later, key), moments)
        return (optax.apply_updates(generator, updates), moments), None

    def one_round(carry: tuple, key: Key[Array, ""]) -> tuple[tuple, Similarities]:
        generator, moments, training = carry
        earlier = later = training
        if arm in (TRUNCATED, PENALTY):
            earlier = levels.descend(training, generator, config.inner_steps - config.unrolled)
            later = levels.descend(earlier, generator, config.unrolled)
        elif arm in INNER_RUNS:
            later = levels.descend(training, generator, config.inner_steps)
        keys = jax.random.split(key, config.outer_steps)
        moved = jax.lax.scan(partial(outer_step, earlier=earlier, later=later), (generator, moments), keys)[0]
        compared = jax.tree.map(
            lambda *each: jnp.stack(each), *((each, batch) for each, batch in (
                (generator, held_out[0]), (moved[0], held_out[0]), (start, held_out[0]),
                (generator, held_out[1]), (moved[0], held_out[1]),
            ))
        )  # fmt: skip
        found = jax.lax.map(lambda pair: levels.similarity(pair[0], later.parameters, pair[1]), compared)
        return (*moved, later), Similarities(*found)

    carry = (state.generator, state.optimiser, training)
    (generator, moments, _), found = jax.lax.scan(one_round, carry, jax.random.split(key, config.period))
    return Alternation(generator, moments, state.period + 1), found


def initial(config: Config, channels: int, key: Key[Array, ""]) -> Alternation:
    """A generator with random weights, as the run's key has it."""
    generator = nnx.state(Generator(config, channels, nnx.Rngs(jax.random.fold_in(key, 2**31))))
    return Alternation(generator, config.outer_optimiser().init(generator), jnp.int32(0))


def validation_batches(levels: Levels) -> tuple[OuterBatch, OuterBatch]:
    """Validation images of other classes than the target, with references of the target, and of the others."""
    images, labels = levels.parts.validation
    keys = jax.random.split(jax.random.key(0), 3)
    target = (labels == levels.config.target).astype(jnp.float32)

    def drawn(key: Array, weights: Array) -> Array:
        return images[jax.random.choice(key, len(images), (len(images),), p=weights / weights.sum())]

    shown = drawn(keys[0], 1 - target)
    return OuterBatch(shown, drawn(keys[1], target), keys[2]), OuterBatch(shown, drawn(keys[1], 1 - target), keys[2])
