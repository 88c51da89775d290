"""Encoders with their projector and predictor.

Convolutions are matrix products of shifted copies, with the batch as the last axis: in a compiled loop on a CPU XLA's
own took eleven times as long as such products, and the batch as the first axis 1.8 times.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from experiments.trigger_optimisation.config import Config

Maps = Float[Array, "channels height width batch"]
KERNEL = 3


def batch_last(images: Float[Array, "batch height width channels"]) -> Maps:
    return jnp.transpose(images, (3, 1, 2, 0))


def batch_first(maps: Maps) -> Float[Array, "batch height width channels"]:
    return jnp.transpose(maps, (3, 1, 2, 0))


class Convolution(nnx.Module):
    """3 x 3, with zeros around the map."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        start = jax.nn.initializers.he_normal()
        self.kernel = nnx.Param(start(rngs.params(), (KERNEL**2 * inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride = stride

    def __call__(self, maps: Maps) -> Float[Array, "outputs rows columns batch"]:
        """Raises: ValueError: height or width is no multiple of the stride."""
        channels, height, width, batch = maps.shape
        if height % self.stride or width % self.stride:
            raise ValueError(f"maps must have sides that are multiples of {self.stride}; got {height} x {width}")
        padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            padded[:, row : row + height : self.stride, column : column + width : self.stride]
            for row in range(KERNEL)
            for column in range(KERNEL)
        ]
        columns = jnp.concatenate(shifted).reshape(KERNEL**2 * channels, -1)
        products = self.kernel[...].T @ columns + self.bias[...][:, None]
        return products.reshape(-1, height // self.stride, width // self.stride, batch)


class Normalisation(nnx.Module):
    """Every image's map to mean 0 and variance 1, then scaled and shifted by channel: no statistics of batches."""

    def __init__(self, channels: int):
        self.scale, self.bias = nnx.Param(jnp.ones((channels, 1, 1, 1))), nnx.Param(jnp.zeros((channels, 1, 1, 1)))

    def __call__(self, maps: Maps) -> Maps:
        return self.scale[...] * jax.nn.standardize(maps, axis=(0, 1, 2)) + self.bias[...]


class Convolutional(nnx.Module):
    """Convolutions of stride 2; the feature is the mean over the last map."""

    def __init__(self, config: Config, channels: int, rngs: nnx.Rngs):
        inputs = (channels, *config.widths)
        self.layers = nnx.List([Convolution(a, b, 2, rngs) for a, b in zip(inputs, config.widths, strict=False)])
        self.norms = nnx.List([Normalisation(width) for width in config.widths])
        self.width = config.widths[-1]

    def __call__(self, images: Float[Array, "batch side side channels"]) -> Float[Array, "batch width"]:
        maps = batch_last(images)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            maps = jax.nn.relu(norm(layer(maps)))
        return maps.mean(axis=(1, 2)).T


class Block(nnx.Module):
    """Two convolutions beside a shortcut, which is a matrix where width or stride change (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.first, self.second = Convolution(inputs, outputs, stride, rngs), Convolution(outputs, outputs, 1, rngs)
        self.norms = nnx.List([Normalisation(outputs), Normalisation(outputs)])
        start = jax.nn.initializers.he_normal()
        changed = inputs != outputs or stride > 1
        self.shortcut = nnx.Param(start(rngs.params(), (inputs, outputs))) if changed else None
        self.stride = stride

    def __call__(self, maps: Maps) -> Float[Array, "outputs rows columns batch"]:
        inner = self.norms[1](self.second(jax.nn.relu(self.norms[0](self.first(maps)))))
        if self.shortcut is not None:
            maps = jnp.einsum("ihwb,io->ohwb", maps[:, :: self.stride, :: self.stride], self.shortcut[...])
        return jax.nn.relu(maps + inner)


class Residual(nnx.Module):
    """ResNet for small images, as used on CIFAR: a 3 x 3 stem, stages of blocks, all but the first of stride 2."""

    def __init__(self, config: Config, channels: int, rngs: nnx.Rngs):
        width = config.residual_widths[0]
        self.stem, self.norm = Convolution(channels, width, config.stem_stride, rngs), Normalisation(width)
        blocks = []
        for stage, (outputs, count) in enumerate(zip(config.residual_widths, config.residual_blocks, strict=True)):
            for index in range(count):
                blocks.append(Block(width, outputs, 2 if stage and not index else 1, rngs))
                width = outputs
        self.blocks = nnx.List(blocks)
        self.width = width

    def __call__(self, images: Float[Array, "batch side side channels"]) -> Float[Array, "batch width"]:
        maps = jax.nn.relu(self.norm(self.stem(batch_last(images))))
        for block in self.blocks:
            maps = block(maps)
        return maps.mean(axis=(1, 2)).T


class Learner(nnx.Module):
    """An encoder, a projector and a predictor, the last two with hidden layers standardised over the batch.

    Attributes:
      encoder: images -> features.
    """

    def __init__(self, config: Config, encoder: str, channels: int, rngs: nnx.Rngs):
        kind = {"convolutional": Convolutional, "residual": Residual}[encoder]
        self.encoder = kind(config, channels, rngs)
        width = self.encoder.width
        self.projector = nnx.List(
            [nnx.Linear(width, config.projected, rngs=rngs), nnx.Linear(config.projected, config.projected, rngs=rngs)]
        )
        self.predictor = nnx.List(
            [
                nnx.Linear(config.projected, config.bottleneck, rngs=rngs),
                nnx.Linear(config.bottleneck, config.projected, rngs=rngs),
            ]
        )

    def project(self, features: Float[Array, "batch width"]) -> Float[Array, "batch projected"]:
        """Standardised over the batch, as SimSiam needs it."""
        first, second = self.projector
        return jax.nn.standardize(second(jax.nn.relu(jax.nn.standardize(first(features), axis=0))), axis=0)

    def predict(self, projected: Float[Array, "batch projected"]) -> Float[Array, "batch projected"]:
        first, second = self.predictor
        return second(jax.nn.relu(jax.nn.standardize(first(projected), axis=0)))
