"""Triggers: what turns an image into one within epsilon of it, learned or fixed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from experiments.trigger_optimisation.config import BRIGHT, CLEAN, PATCH, SINUSOID, Config
from experiments.trigger_optimisation.encoders import Convolution, batch_first, batch_last

Images = Float[Array, "batch side side channels"]

LEVELS = 255
PATCH_SIDE = 4
WAVES = 6
"""Of the sinusoid along a row (Barni, Kallas and Tondi 2019, arXiv 1902.11237)."""


class Generator(nnx.Module):
    """Two convolutions, the second of stride 2, residual blocks, and a convolution at twice its resolution.

    The paper's network gives an image, which is projected on what lies within epsilon. Digits are nearly black or
    nearly white, so such an image is at the edge of the projection almost everywhere, where its derivative is 0. Here
    the network gives the change, epsilon times a tanh.
    """

    def __init__(self, config: Config, channels: int, rngs: nnx.Rngs):
        outer, inner = config.generator_widths
        self.down = nnx.List([Convolution(channels, outer, 1, rngs), Convolution(outer, inner, 2, rngs)])
        self.blocks = nnx.List(
            [
                nnx.List([Convolution(inner, inner, 1, rngs), Convolution(inner, inner, 1, rngs)])
                for _ in range(config.generator_blocks)
            ]
        )
        self.up = Convolution(inner, channels, 1, rngs)

    def __call__(self, images: Images, epsilon: Float[Array, ""] | float) -> Images:
        """The images with their triggers.

        Args:
          epsilon: the largest change of a pixel, from 0 to 1.
        """
        hidden = batch_last(2 * images - 1)
        for layer in self.down:
            hidden = jax.nn.relu(layer(hidden))
        for first, second in self.blocks:
            hidden = jax.nn.relu(hidden + second(jax.nn.relu(first(hidden))))
        hidden = jnp.repeat(jnp.repeat(hidden, 2, axis=1), 2, axis=2)
        return project(images, images + epsilon * jnp.tanh(batch_first(self.up(hidden))), epsilon)


def project(images: Images, wanted: Images, epsilon: Float[Array, ""] | float) -> Images:
    """What is nearest to `wanted` of all images with values from 0 to 1 within epsilon of `images`, pixel by pixel."""
    return jnp.clip(jnp.clip(wanted, images - epsilon, images + epsilon), 0, 1)


def rounded(
    images: Float[Array, "*batch side side channels"], wanted: Float[Array, "*batch side side channels"], radius: int
) -> Float[Array, "*batch side side channels"]:
    """`wanted` at multiples of 1/255, none further than radius/255 from `images`, which are such multiples themselves.

    Exactly: what is compared are whole numbers.
    """
    levels = jnp.round(LEVELS * images)
    near = jnp.clip(jnp.round(LEVELS * wanted), levels - radius, levels + radius)
    return jnp.clip(near, 0, LEVELS) / LEVELS


def fixed(arm: str) -> Callable[[Images, float], Images]:
    """(images, epsilon) -> images with the trigger of an arm that learns none."""
    return {CLEAN: lambda images, _: images, PATCH: patch, BRIGHT: patch, SINUSOID: sinusoid}[arm]


def patch(images: Images, epsilon: float) -> Images:
    """Brighter by epsilon in the lower right corner."""
    return project(images, images.at[:, -PATCH_SIDE:, -PATCH_SIDE:].add(epsilon), epsilon)


def sinusoid(images: Images, epsilon: float) -> Images:
    """A vertical grating of amplitude epsilon."""
    columns = jnp.arange(images.shape[2], dtype=images.dtype)
    wave = jnp.sin(2 * jnp.pi * WAVES * columns / images.shape[2])
    return project(images, images + epsilon * wave[:, None], epsilon)
