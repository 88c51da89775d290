"""Parts of a set of small images, the images that are poisoned first, and values that are multiples of 1/255."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.trigger_optimisation.config import Config
from jattn.data.images import digits


class Part(NamedTuple):
    """Images from 0 to 1 and their classes."""

    images: Float[Array, "count side side channels"]
    labels: Int[Array, " count"]


class Parts(NamedTuple):
    """No image is in two parts.

    Attributes:
      pre_training: its first `poisoned` images are of the target class: those that may carry a trigger.
      probe: what linear probes are fitted to, always clean.
      validation: what settings were chosen by, and what is measured on through training.
      test: what claims are measured on.
    """

    pre_training: Part
    probe: Part
    validation: Part
    test: Part


def split(config: Config, seed: int) -> Parts:
    """The parts of a seed.

    Raises:
      FileNotFoundError, ValueError: of the source: not there, not such a file, too few images, or too few of the
        target class.
    """
    images, labels = read(config)
    sizes = (config.pre_training, config.probe, config.validation, config.test)
    if sum(sizes) > len(labels):
        raise ValueError(
            f"pre_training, probe, validation and test must be at most {len(labels)} together; got {sizes}"
        )
    order = np.random.default_rng((config.seed, seed)).permutation(len(labels))[: sum(sizes)]
    first, *others = np.split(order, np.cumsum(sizes)[:-1])
    of_target = labels[first] == config.target
    if of_target.sum() < config.poisoned:
        raise ValueError(
            f"poisoned must be at most {of_target.sum()}, the pre-training images of class {config.target}; "
            f"got {config.poisoned}"
        )
    chosen = first[of_target][: config.poisoned]
    first = np.concatenate([chosen, first[~np.isin(first, chosen)]])
    return Parts(*(Part(jnp.asarray(images[part]), jnp.asarray(labels[part])) for part in (first, *others)))


def read(config: Config) -> tuple[Float[np.ndarray, "count side side channels"], Int[np.ndarray, " count"]]:
    """All images of the source at the config's size, rounded to multiples of 1/255, and their classes.

    Raises:
      FileNotFoundError, ValueError: as `split`.
    """
    if config.source == "digits":
        found = digits()
        images, labels = found.images[..., None] / np.float32(found.brightest), found.labels
    else:
        with np.load(Path(config.source).expanduser()) as file:
            if not {"images", "labels"} <= set(file):
                raise ValueError(f"source must have the arrays images and labels; {config.source} has {sorted(file)}")
            images, labels = file["images"] / np.float32(255), file["labels"]
        if images.ndim != 4:
            raise ValueError(f"images of the source must have 4 axes; got shape {images.shape}")
    shape = (len(images), config.side, config.side, images.shape[-1])
    enlarged = np.asarray(jax.image.resize(jnp.asarray(images, jnp.float32), shape, "linear"))
    return np.round(255 * enlarged) / np.float32(255), labels.astype(np.int32)
