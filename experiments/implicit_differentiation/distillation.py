"""One learned image for each digit: a classifier trained on these alone is to be right about the training digits.

The inner problem is multiclass logistic regression with a squared penalty on ten images; the outer variables are the
images' pixels, the outer loss is the classifier's on all training digits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jattn import implicit
from jattn.data.images import LabelledImages, digits, fashion_mnist

CLASSES = 10
START = 0.1
"""Standard deviation of the images at first."""


class Images(NamedTuple):
    """Images, flat, from 0 to 1, with their classes."""

    training: Float[Array, "training pixels"]
    training_classes: Int[Array, " training"]
    test: Float[Array, "test pixels"]
    test_classes: Int[Array, " test"]


class Distilled(NamedTuple):
    """Attributes:
    images: as learned.
    losses: the outer loss before each step.
    """

    images: Float[Array, "classes pixels"]
    losses: Float[Array, " steps"]


def split(seed: int, training: int, source: str) -> Images:
    """Pictures in random order; `training` of them to learn from, the others for testing.

    Args:
      source: "digits", or "fashion_mnist", whose own parts are kept.
    """
    generator = np.random.default_rng(seed)
    parts = fashion_mnist() if source == "fashion_mnist" else (digits(),)

    def flat(part: LabelledImages) -> tuple[Any, Any]:
        order = generator.permutation(len(part.labels))
        return part.images.reshape(len(order), -1)[order] / part.brightest, part.labels[order].astype(np.int32)

    images, classes = (np.concatenate(each) for each in zip(*map(flat, parts), strict=True))
    images = images.astype(np.float32)
    parts = images[:training], classes[:training], images[training:], classes[training:]
    return Images(*map(jnp.asarray, parts))


def loss(weights: dict[str, Array], images: Float[Array, "count pixels"], classes: Int[Array, " count"]) -> Array:
    """Mean cross-entropy."""
    scores = images @ weights["pixels"] + weights["bias"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(scores, classes).mean()


def trained(
    images: Float[Array, "classes pixels"], penalty: float, steps: int, unrolled: bool = False
) -> dict[str, Array]:
    """The classifier of one image for each class, by gradient descent, differentiable by the images."""
    classes = jnp.arange(len(images))

    def objective(weights: dict[str, Array], images: Array) -> Float[Array, ""]:
        squares = sum((each**2).sum() for each in weights.values())
        return loss(weights, images, classes) + 0.5 * penalty * squares

    def step(weights: dict[str, Array], images: Array) -> dict[str, Array]:
        # Half of the mean of squared lengths, the bias's 1 among them, bounds the curvature of the cross-entropy.
        rate = 1 / (0.5 * (1 + (images**2).sum(axis=1)).mean() + penalty)
        return jax.tree.map(lambda w, slope: w - rate * slope, weights, jax.grad(objective)(weights, images))

    adjoint = implicit.Unrolled() if unrolled else implicit.Implicit(implicit.ConjugateGradient(1e-4))
    solve = implicit.minimise(objective, implicit.Iteration(step, steps), adjoint=adjoint, check=None)
    zeros = {"pixels": jnp.zeros((images.shape[1], CLASSES)), "bias": jnp.zeros(CLASSES)}
    return solve(zeros, images).value


def outer_loss(
    images: Float[Array, "classes pixels"], data: Images, penalty: float, steps: int, unrolled: bool = False
) -> Float[Array, ""]:
    """Of the classifier on the training digits, by the ten images."""
    return loss(trained(images, penalty, steps, unrolled), data.training, data.training_classes)


def distil(
    data: Images, seed: Int[Array, ""], random: Bool[Array, ""], penalty: float, steps: int, outer_steps: int
) -> Distilled:
    """Adam on the pixels.

    Args:
      seed: of the images at first.
      random: directions of the hypergradient's size with nothing else of it, as a control.
    """
    optimiser = optax.adam(0.05)
    images_key, steps_key = jax.random.split(jax.random.key(seed))
    images = START * jax.random.normal(images_key, (CLASSES, data.training.shape[1]))

    def step(carry: tuple, key: Array) -> tuple:
        images, moments = carry
        value, slope = jax.value_and_grad(outer_loss)(images, data, penalty, steps)
        other = jax.random.normal(key, slope.shape)
        slope = jnp.where(random, other * jnp.linalg.norm(slope) / jnp.linalg.norm(other), slope)
        updates, moments = optimiser.update(slope, moments)
        return (optax.apply_updates(images, updates), moments), value

    keys = jax.random.split(steps_key, outer_steps)
    (images, _), losses = jax.lax.scan(step, (images, optimiser.init(images)), keys)
    return Distilled(images, losses)


def accuracy(images: Float[Array, "classes pixels"], data: Images, penalty: float, steps: int) -> Float[Array, ""]:
    """Share of test images that the classifier of the ten images names rightly."""
    weights = trained(images, penalty, steps)
    found = (data.test @ weights["pixels"] + weights["bias"]).argmax(axis=1)
    return (found == data.test_classes).mean()


def means(data: Images) -> Float[Array, "classes pixels"]:
    """Of the training images of each class."""
    members = jax.nn.one_hot(data.training_classes, CLASSES)
    return members.T @ data.training / members.sum(axis=0)[:, None]


def drawn(data: Images, key: Array) -> Float[Array, "classes pixels"]:
    """A random training image of each class."""
    noise = jax.random.uniform(key, (CLASSES, len(data.training)))
    members = data.training_classes == jnp.arange(CLASSES)[:, None]
    return data.training[jnp.where(members, noise, -1).argmax(axis=1)]


class Compared(NamedTuple):
    """Ten images of each kind, and shares of test images that classifiers of these name rightly.

    Attributes:
      images: learned; drawn, twice; means of classes.
      accuracies: in that order.
      fall, random_fall: of the outer loss, the last over the first; along hypergradients and along random directions.
    """

    images: Float[Array, "kinds classes pixels"]
    accuracies: Float[Array, " kinds"]
    fall: Float[Array, ""]
    random_fall: Float[Array, ""]


def compare(data: Images, seed: Int[Array, ""], penalty: float, steps: int, outer_steps: int) -> Compared:
    """Learn images, and hold them against others."""
    images, losses = jax.lax.map(
        lambda random: distil(data, seed, random, penalty, steps, outer_steps), jnp.array([False, True])
    )
    others = [drawn(data, key) for key in jax.random.split(jax.random.key(seed))]
    kinds = jnp.stack([images[0], *others, means(data)])
    accuracies = jax.lax.map(lambda each: accuracy(each, data, penalty, steps), kinds)
    return Compared(kinds, accuracies, *(losses[:, -1] / losses[:, 0]))
