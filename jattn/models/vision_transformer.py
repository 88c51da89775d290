"""A plain vision transformer whose attention can be exchanged (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jattn.layers.block import Block
from jattn.layers.feed_forward import FeedForward
from jattn.layers.taps import scope, tap
from jattn.mechanisms.full_attention import FullAttention
from jattn.models.decoder import BuildAttention
from jattn.settings import at_least

POSITION_SCALE = 0.02
"""Standard deviation of the positions that a model starts from."""


def full_attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> FullAttention:
    """Of every patch to every patch, the same in every layer."""
    return FullAttention(width, heads, bias=True, rngs=rngs)


@dataclass(frozen=True)
class VisionTransformerConfig:
    """Sizes of the model, and its attention.

    Attributes:
      image: height and width in pixels.
      patch: pixels along the side of a patch; divides the image's.
      hidden: width of the feed-forward layers.
      attention: (width, heads, layer, rngs) -> a module that maps features to as many.
    """

    image: int
    patch: int
    channels: int
    width: int
    layers: int
    heads: int
    hidden: int
    classes: int
    attention: BuildAttention = full_attention

    def __post_init__(self) -> None:
        at_least(1, self, "image", "patch", "channels", "width", "layers", "heads", "hidden", "classes")
        if self.image % self.patch:
            raise ValueError(f"patch must divide the image's {self.image} pixels; got {self.patch}")

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.image // self.patch) ** 2


class VisionTransformer(nnx.Module):
    """Patches, positions that are learned, blocks, a norm, the mean over patches, and logits of classes.

    Without a token for the class: logits are of the mean, as in the sequel (Beyer et al. 2022, arXiv 2205.01580).
    Sites: embedding, layers.i.* (`Block`), residual (of the last block), norm, logits.
    """

    def __init__(self, config: VisionTransformerConfig, *, rngs: nnx.Rngs):
        self.image, self.patch, self.channels = config.image, config.patch, config.channels
        self.embedding = nnx.Linear(config.patch**2 * config.channels, config.width, rngs=rngs)
        drawn = jax.random.normal(rngs.params(), (config.patches, config.width))
        self.positions = nnx.Param(POSITION_SCALE * drawn)
        self.blocks = nnx.List([_block(config, layer, rngs) for layer in range(config.layers)])
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.logits = nnx.Linear(config.width, config.classes, rngs=rngs)

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Logits of the classes.

        Raises:
          ValueError: images of another size than the model's.
        """
        if images.shape[1:] != (want := (self.image, self.image, self.channels)):
            raise ValueError(f"images must have the shape (batch, {', '.join(map(str, want))}); got {images.shape}")
        patches = cut_patches(images, self.patch)
        features = tap("embedding", self.embedding(patches) + self.positions[...])
        for layer, block in enumerate(self.blocks):
            with scope("layers", layer):
                features = block(features)
        normed = tap("norm", self.norm(tap("residual", features)))
        return tap("logits", self.logits(normed.mean(axis=1)))


def cut_patches(
    images: Float[Array, "batch height width channels"], patch: int
) -> Float[Array, "batch patches features"]:
    """Squares of the images, row by row; of each the pixels row by row, and of each pixel the channels."""
    batch, height, width, channels = images.shape
    rows = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return jnp.swapaxes(rows, 2, 3).reshape(batch, -1, patch**2 * channels)


def _block(config: VisionTransformerConfig, layer: int, rngs: nnx.Rngs) -> Block:
    return Block(
        nnx.LayerNorm(config.width, rngs=rngs),
        config.attention(config.width, config.heads, layer, rngs),
        nnx.LayerNorm(config.width, rngs=rngs),
        FeedForward(config.width, config.hidden, jax.nn.gelu, rngs=rngs),
    )
