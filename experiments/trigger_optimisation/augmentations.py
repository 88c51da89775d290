"""Views of an image for contrastive learning: pure, with keys, and differentiable by the image."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Scalar = Float[Array, ""]
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True)
class Augmentation:
    """How far views may be from an image.

    Attributes:
      crop: the shortest side of a random crop, over the image's.
      rotation: at most, in degrees, either way.
      contrast: differences from the mean are multiplied by 1 - contrast to 1 + contrast.
      noise: standard deviation of normal noise.
      blur: the widest Gaussian, in pixels, of three taps.
      flip: half of the views are mirrored.
      saturation: differences from grey are multiplied by 1 - saturation to 1 + saturation; colour images only.
      grey: share of colour images that lose their colours.
    """

    crop: float = 0.75
    rotation: float = 10.0
    contrast: float = 0.4
    noise: float = 0.05
    blur: float = 0.6
    flip: bool = False
    saturation: float = 0.0
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1; got {self.crop}")
        for name in ("rotation", "noise", "blur"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in ("contrast", "saturation", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {getattr(self, name)}")


class Drawn(NamedTuple):
    """What is random about a view.

    Attributes:
      uniform: from 0 to 1: zoom, angle, shift down and right, mirror, contrast, blur, saturation, grey.
      normal: noise of standard deviation 1.
    """

    uniform: Float[Array, "*batch 9"]
    normal: Float[Array, "*batch height width channels"]


def views(
    settings: Augmentation, images: Float[Array, "batch height width channels"], key: Key[Array, ""]
) -> Float[Array, "batch height width channels"]:
    """One view of each image. Values are not clipped to those of images, so that no gradient is lost."""
    return jax.vmap(partial(view, settings))(images, draw(images.shape, images.dtype, key))


def draw(shape: tuple[int, ...], dtype: jnp.dtype, key: Key[Array, ""]) -> Drawn:
    """For images of a shape; all in one, because drawing takes longer to compile than anything that is made of it."""
    pixels = math.prod(shape[1:])
    tiny = jnp.finfo(dtype).eps
    uniform = jax.random.uniform(key, (shape[0], 9 + pixels), dtype, tiny)
    normal = jax.scipy.special.erfinv(jnp.clip(2 * uniform[:, 9:] - 1, tiny - 1, 1 - tiny)) * math.sqrt(2)
    return Drawn(uniform[:, :9], normal.reshape(shape))


def view(
    settings: Augmentation, image: Float[Array, "height width channels"], drawn: Drawn
) -> Float[Array, "height width channels"]:
    """Crop and rotate, mirror, change colours and contrast, blur, add noise."""
    zoom, angle, down, right, mirror, contrast, width, saturation, grey = drawn.uniform
    zoom, angle = settings.crop + (1 - settings.crop) * zoom, jnp.deg2rad(settings.rotation) * (2 * angle - 1)
    moved = warp(image, zoom, angle, jnp.stack([2 * down - 1, 2 * right - 1]))
    moved = jax.lax.optimization_barrier(moved)  # XLA would put the warp into each of the fused loops that read it
    if settings.flip:
        moved = jnp.where(mirror < 0.5, moved[:, ::-1], moved)
    if image.shape[-1] == len(LUMINANCE):
        factor = 1 + settings.saturation * (2 * saturation - 1)
        moved = recolour(moved, jnp.where(grey < settings.grey, 0, factor))
    mean = moved.mean()
    contrasted = mean + (1 + settings.contrast * (2 * contrast - 1)) * (moved - mean)
    return blur(contrasted, settings.blur * width) + settings.noise * drawn.normal


def warp(
    image: Float[Array, "height width channels"], zoom: Scalar, angle: Scalar, place: Float[Array, "2"]
) -> Float[Array, "height width channels"]:
    """A crop, turned, at the image's size, by linear interpolation; beyond the edge is the edge's value.

    Args:
      zoom: the crop's side over the image's.
      angle: in radians.
      place: of the crop, from -1 to 1 down and right.
    """
    height, width, _ = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2], image.dtype)
    middle = centre + (1 - zoom) * centre * place
    rows, columns = jnp.meshgrid(jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij")
    cosine, sine = zoom * jnp.cos(angle), zoom * jnp.sin(angle)
    at = cosine * rows - sine * columns + middle[0], sine * rows + cosine * columns + middle[1]
    return sample(image, jnp.clip(at[0], 0, height - 1), jnp.clip(at[1], 0, width - 1))


@jax.custom_vjp
def sample(
    image: Float[Array, "height width channels"],
    rows: Float[Array, "height width"],
    columns: Float[Array, "height width"],
) -> Float[Array, "height width channels"]:
    """Linear interpolation at places within an image of at least 2 x 2; derivatives by the places are not-a-number.

    Values are read, four neighbours for each, which is far quicker than products with weights. The derivative is such
    products: read ones would have to be added up place by place.
    """
    height, width, channels = image.shape
    top, left = (jnp.clip(jnp.floor(at), 0, size - 2) for at, size in ((rows, height), (columns, width)))
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    first, flat = (top * width + left).astype(int), image.reshape(-1, channels)
    here, beside, below, beyond = (
        flat.at[first + step].get(mode="promise_in_bounds") for step in (0, 1, width, width + 1)
    )
    return (1 - down) * ((1 - right) * here + right * beside) + down * ((1 - right) * below + right * beyond)


def _sampled(image: Array, rows: Array, columns: Array) -> tuple[Array, tuple[Array, Array]]:
    return sample(image, rows, columns), (rows, columns)


def _by_image(places: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array, Array]:
    rows, columns = places
    weights = hats(rows, cotangent.shape[0]), hats(columns, cotangent.shape[1])
    unknown = jnp.full_like(rows, jnp.nan)
    return jnp.einsum("rci,rcj,rck->ijk", *weights, cotangent), unknown, unknown


sample.defvjp(_sampled, _by_image)


def hats(at: Float[Array, "*places"], count: int) -> Float[Array, "*places count"]:
    """Weights of linear interpolation between values at 0 to count - 1."""
    return jnp.maximum(0, 1 - jnp.abs(at[..., None] - jnp.arange(count, dtype=at.dtype)))


def recolour(image: Float[Array, "height width 3"], factor: Scalar) -> Float[Array, "height width 3"]:
    """Differences from grey times a factor."""
    grey = (image @ jnp.array(LUMINANCE, image.dtype))[..., None]
    return grey + factor * (image - grey)


def blur(image: Float[Array, "height width channels"], deviation: Scalar) -> Float[Array, "height width channels"]:
    """A Gaussian of three taps in both directions; nothing at a deviation of 0."""
    side = jnp.exp(-0.5 / jnp.maximum(deviation, 1e-3) ** 2)
    for axis in (0, 1):
        padded = jnp.pad(image, [(1, 1) if each == axis else (0, 0) for each in range(3)], mode="edge")
        before, after = (jax.lax.slice_in_dim(padded, start, start + image.shape[axis], axis=axis) for start in (0, 2))
        image = (image + side * (before + after)) / (1 + 2 * side)
    return image
