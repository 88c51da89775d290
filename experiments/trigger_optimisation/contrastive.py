"""Contrastive training of a learner: SimCLR, BYOL or SimSiam, one compiled step for all who train."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from experiments.trigger_optimisation import losses
from experiments.trigger_optimisation.augmentations import views
from experiments.trigger_optimisation.config import Config
from experiments.trigger_optimisation.encoders import Learner

Images = Float[Array, "batch side side channels"]
Parameters = nnx.State


class Training(NamedTuple):
    """What a step reads and replaces.

    Attributes:
      parameters: of the learner.
      targets: of BYOL's target network, whose predictor has no use; other methods carry it along.
      optimiser: optax's state.
      key: step n draws from `fold_in(key, n)`.
      step: steps taken.
    """

    parameters: Parameters
    targets: Parameters
    optimiser: optax.OptState
    key: Key[Array, ""]
    step: Int[Array, ""]


class Learning(NamedTuple):
    """A learner's structure and how it is trained.

    Attributes:
      graph: with parameters it is a `Learner`.
      optimiser: of the parameters.
    """

    config: Config
    method: str
    graph: nnx.GraphDef
    optimiser: optax.GradientTransformation

    def features(self, parameters: Parameters, images: Images) -> Float[Array, "batch width"]:
        return nnx.merge(self.graph, parameters).encoder(images)


def learning(config: Config, method: str, encoder: str, channels: int, steps: int) -> Learning:
    """Args: steps: over which the learning rate falls to 0."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: Learner(config, encoder, channels, nnx.Rngs(0))))
    return Learning(config, method, graph, config.optimiser(method, steps))


def begin(how: Learning, encoder: str, channels: int, key: Key[Array, ""]) -> Training:
    """A learner with random weights."""
    weights_key, key = jax.random.split(key)
    parameters = nnx.state(Learner(how.config, encoder, channels, nnx.Rngs(weights_key)))
    return Training(parameters, jax.tree.map(jnp.copy, parameters), how.optimiser.init(parameters), key, jnp.int32(0))


def contrast(
    how: Learning, parameters: Parameters, targets: Parameters, images: Images, key: Key[Array, ""]
) -> Float[Array, ""]:
    """The method's loss on two views of each image, to be differentiated by the parameters alone.

    SimSiam is BYOL whose targets are the parameters themselves. They are an argument and not behind `stop_gradient`,
    which would also hide from a derivative through the whole step that projections depend on images.
    """
    both = views(how.config.augmentation, jnp.concatenate([images, images]), key)

    def projections(parameters: Parameters) -> tuple[Learner, tuple[Array, Array]]:
        learner = nnx.merge(how.graph, parameters)
        first, second = jnp.split(learner.encoder(both), 2)
        return learner, (learner.project(first), learner.project(second))

    learner, projected = projections(parameters)
    if how.method == "simclr":
        return losses.info_nce(*projected, how.config.temperature)
    predicted = (learner.predict(projected[0]), learner.predict(projected[1]))
    loss = losses.byol if how.method == "byol" else losses.simsiam
    return loss(predicted, projections(targets)[1])


def step(
    how: Learning, loss: Callable[[Parameters, Parameters, Any], Float[Array, ""]], training: Training
) -> Training:
    """One step down loss(parameters, targets, key of the step)."""
    key, targets = jax.random.fold_in(training.key, training.step), training.targets
    held = targets if how.method == "byol" else training.parameters
    gradient = jax.grad(loss)(training.parameters, held, key)
    updates, optimiser = how.optimiser.update(gradient, training.optimiser, training.parameters)
    parameters = cast(Parameters, optax.apply_updates(training.parameters, updates))
    if how.method == "byol":
        targets = cast(Parameters, optax.incremental_update(parameters, targets, 1 - how.config.target_decay))
    return Training(parameters, targets, optimiser, training.key, training.step + 1)


def batch_loss(how: Learning, images: Images) -> Callable[[Parameters, Parameters, Any], Float[Array, ""]]:
    """The loss on a batch drawn from images with the step's key."""

    def loss(parameters: Parameters, targets: Parameters, key: Key[Array, ""]) -> Float[Array, ""]:
        batch_key, key = jax.random.split(key)
        batch = images[jax.random.randint(batch_key, (how.config.batch_size,), 0, len(images))]
        return contrast(how, parameters, targets, batch, key)

    return loss


def train(how: Learning, images: Images, training: Training, steps: int) -> Training:
    """So many steps on batches of these images."""
    one = partial(step, how, batch_loss(how, images))
    return jax.lax.scan(lambda training, _: (one(training), None), training, None, length=steps)[0]
