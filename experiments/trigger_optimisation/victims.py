"""Fresh victims: learners trained on poisoned images, and how triggered images come to lie while they train."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from experiments.trigger_optimisation import losses
from experiments.trigger_optimisation.augmentations import views
from experiments.trigger_optimisation.contrastive import Images, Learning, Parameters, Training, train


class Watched(NamedTuple):
    """Validation images that are looked at through training.

    Attributes:
      clean: of other classes than the target.
      triggered: the same.
      references: of the target class; some may be twice here.
    """

    clean: Float[Array, "count side side channels"]
    triggered: Float[Array, "count side side channels"]
    references: Float[Array, "count side side channels"]


class History(NamedTuple):
    """Of unit features, standardised like clean images, by record, the last of them after training.

    Attributes:
      alignment: E ‖u - u'‖² of two views, clean and triggered.
      uniformity: log E exp(-2 ‖u - u'‖²), clean and triggered.
      distance: E ‖u - r‖² to references of the target class, clean and triggered.
    """

    alignment: Float[Array, "records 2"]
    uniformity: Float[Array, "records 2"]
    distance: Float[Array, "records 2"]


class Victim(NamedTuple):
    """The learner's parameters after training, and its history."""

    parameters: Parameters
    history: History


def which_are_watched(labels: Int[np.ndarray, " count"], target: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of images of other classes, half as many as there are images, and as many of the target.

    Raises:
      ValueError: there is no image of the target class, or too few of others.
    """
    of_target, others = np.flatnonzero(labels == target), np.flatnonzero(labels != target)
    count = len(labels) // 2
    if not len(of_target) or len(others) < count:
        raise ValueError(
            f"validation must have an image of class {target} and {count} others; "
            f"got {len(of_target)} and {len(others)}"
        )
    return others[:count], np.resize(of_target, count)


def measure(how: Learning, parameters: Parameters, watched: Watched, key: Key[Array, ""]) -> History:
    """One record."""
    plain = jnp.concatenate([watched.clean, watched.triggered])
    seen = views(how.config.augmentation, jnp.concatenate([plain, plain]), key)
    features = how.features(parameters, jnp.concatenate([plain, seen, watched.references]))
    count = len(watched.clean)
    features = losses.standardised(features, features[:count])
    clean, triggered, *of_views, references = jnp.split(features, [count * each for each in range(1, 7)])
    centre = losses.unit(references).mean(axis=0)
    return History(
        alignment=jnp.stack([losses.alignment(of_views[each], of_views[each + 2]) for each in (0, 1)]),
        uniformity=jnp.stack([losses.uniformity(each) for each in (clean, triggered)]),
        distance=jnp.stack([2 - 2 * losses.unit(each).mean(axis=0) @ centre for each in (clean, triggered)]),
    )


def train_victim(how: Learning, training: Training, images: Images, watched: Watched, key: Key[Array, ""]) -> Victim:
    """Train on these images; measured `records` times on the way, with views drawn from the key."""
    config = how.config
    look = partial(measure, how, watched=watched, key=key)

    def record(training, _):
        training = train(how, images, training, config.victim_steps // config.records)
        return training, look(training.parameters)

    training, history = jax.lax.scan(record, training, None, length=config.records)
    return Victim(training.parameters, history)
