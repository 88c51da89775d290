"""Mosaics of small pictures. Of each tile it is asked how many others show the same class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from experiments.biformer.config import ANSWERS, PIXELS, Config
from jattn.data.images import digits, fashion_mnist
from jattn.mechanisms import uncut_regions


class Pictures(NamedTuple):
    """What tiles show.

    Attributes:
      images: grey values up to `brightest`.
      classes: what they are of.
    """

    images: UInt8[np.ndarray, "count height width"]
    classes: Int[np.ndarray, " count"]
    brightest: int


class Parts(NamedTuple):
    """Pictures for mosaics to train with, to validate with, and to test with; none is in two parts."""

    train: Pictures
    validation: Pictures
    test: Pictures


class Mosaics(NamedTuple):
    """What a model sees, what it is asked, and what it was composed of.

    Attributes:
      images: grey values from 0 to 1.
      answers: of each tile how many other tiles show its class: 0, 1, 2, or 3 for three and more.
      classes: of each tile, row by row.
    """

    images: Float[Array, "count height width 1"]
    answers: Int[Array, "count tiles"]
    classes: Int[Array, "count tiles"]


def split(config: Config) -> Parts:
    """The parts of the config's source: its own test part if it has one, otherwise drawn; then validation.

    Raises:
      FileNotFoundError, ValueError: as the source.
      ValueError: a part has fewer pictures than a mosaic's tiles.
    """
    if config.source == "digits":
        found = digits()
        source = Pictures(found.images, found.labels.astype(np.int32), found.brightest)
        drawn, test = _divided(source, config.test_images, config.seed)
    else:
        drawn, test = (
            Pictures(_padded(part.images, PIXELS[config.source]), part.labels.astype(np.int32), part.brightest)
            for part in fashion_mnist()
        )
        test = Pictures(test.images[: config.test_images], test.classes[: config.test_images], test.brightest)
    train, validation = _divided(drawn, config.validation_images, config.seed + 1)
    parts = Parts(train, validation, test)
    for name, part in parts._asdict().items():
        if len(part.classes) < config.regions:
            raise ValueError(f"the {name} part must have the {config.regions} pictures of a mosaic; got {len(part[1])}")
    return parts


def compose(source: Pictures, tiles: int, count: int, key: Key[Array, ""]) -> Mosaics:
    """Mosaics of tiles x tiles pictures drawn at random, none twice in a mosaic."""
    keys = jax.random.split(key, count)
    total = len(source.classes)
    # The highest of random numbers: a permutation, by which `choice` draws, sorts them all.
    drawn = jax.vmap(lambda key: jax.lax.top_k(jax.random.uniform(key, (total,)), tiles**2)[1])(keys)
    shown, classes = jnp.asarray(source.images)[drawn], jnp.asarray(source.classes)[drawn]
    side = tiles * source.images.shape[-1]
    images = uncut_regions(shown.reshape(count, tiles**2, -1, 1), side, side)
    others = (classes[:, :, None] == classes[:, None]).sum(axis=-1) - 1
    return Mosaics(images.astype(jnp.float32) / source.brightest, jnp.minimum(others, ANSWERS - 1), classes)


def _divided(source: Pictures, second: int, seed: int) -> tuple[Pictures, Pictures]:
    """All but so many of them, and those."""
    order = np.random.default_rng(seed).permutation(len(source.classes))
    most, rest = (
        Pictures(source.images[part], source.classes[part], source.brightest)
        for part in np.split(order, [max(0, len(order) - second)])
    )
    return most, rest


def _padded(images: UInt8[np.ndarray, "count height width"], pixels: int) -> UInt8[np.ndarray, "count side side"]:
    """Background around images, up to so many pixels on a side."""
    margins = [divmod(pixels - side, 2) for side in images.shape[1:]]
    return np.pad(images, ((0, 0), *((half, half + odd) for half, odd in margins)))
