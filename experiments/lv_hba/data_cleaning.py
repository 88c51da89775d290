"""Data hyper-cleaning on digits: softmax regression on samples some of whose labels are wrong, each with a weight.

f(x, W) = mean of sigmoid(stretch x_i) times the cross-entropy of sample i + decay/2 ‖W‖², F(x, W) the cross-entropy on
validation samples with right labels. Outer variables are the x_i, one for each training sample; inner ones are W.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jattn.bilevel import Blocks, Problem
from jattn.data.images import digits

CLASSES = 10


class Samples(NamedTuple):
    """Pixels from 0 to 1 with a 1 at their end, and labels of one class as 1 and of the others as 0.

    Attributes:
      corrupted: which training labels are wrong.
    """

    training: tuple[Float[Array, "training size"], Float[Array, "training classes"]]
    validation: tuple[Float[Array, "validation size"], Float[Array, "validation classes"]]
    test: tuple[Float[Array, "test size"], Float[Array, "test classes"]]
    corrupted: Bool[Array, " training"]


def corrupted_digits(training: int, validation: int, corrupted: float, seed: tuple[int, ...]) -> Samples:
    """A random split; this share of the training labels is replaced by another class, each as likely."""
    generator = np.random.default_rng(seed)
    found: Any = digits()
    order = generator.permutation(len(found.labels))
    pixels = found.images[order].reshape(len(order), -1) / found.brightest
    features = jnp.asarray(np.concatenate([pixels, np.ones((len(order), 1))], axis=1), jnp.float32)
    labels = found.labels[order].astype(int)
    wrong = np.zeros(len(order), bool)
    wrong[generator.permutation(training)[: round(corrupted * training)]] = True
    labels[wrong] = (labels[wrong] + generator.integers(1, CLASSES, wrong.sum())) % CLASSES
    targets = jax.nn.one_hot(labels, CLASSES)
    parts = (slice(training), slice(training, training + validation), slice(training + validation, None))
    known, judged, test = ((features[part], targets[part]) for part in parts)
    return Samples(known, judged, test, jnp.asarray(wrong[:training]))


def cross_entropies(
    weights: Float[Array, "size classes"],
    features: Float[Array, "samples size"],
    targets: Float[Array, "samples classes"],
) -> Float[Array, " samples"]:
    """One for each sample, in nats."""
    return -jnp.sum(jax.nn.log_softmax(features @ weights) * targets, axis=1)


def cleaning(samples: Samples, decay: float, stretch: float, blocks: int | None = None) -> Problem:
    """Args: blocks: into which both sets of samples are cut, of which an iteration draws one; None: all at once."""
    count = len(samples.corrupted)
    whole = ((*samples.training, jnp.arange(count)), samples.validation)

    def inner(x: Array, weights: Array, batch: tuple = whole[0]) -> Array:
        features, targets, index = batch
        losses = jax.nn.sigmoid(stretch * x[index]) * cross_entropies(weights, features, targets)
        return losses.mean() + decay / 2 * jnp.sum(weights**2)

    def outer(x: Array, weights: Array, batch: tuple = whole[1]) -> Array:
        return cross_entropies(weights, *batch).mean()

    if blocks is None:
        return Problem(outer, inner)

    def cut(arrays: tuple) -> Blocks:
        return Blocks(jax.tree.map(lambda array: array.reshape(blocks, -1, *array.shape[1:]), arrays))

    return Problem(outer, inner, inner_batch=cut(whole[0]), outer_batch=cut(whole[1]))


def trained(
    samples: Samples, sample_weights: Float[Array, " training"], decay: float | Float[Array, ""]
) -> Float[Array, "size classes"]:
    """The inner solution of given weights of samples, until the gradient is below 1e-5.

    By Nesterov's method for strongly convex objectives; compiled in a moment, where L-BFGS takes ten.
    """
    features, targets = samples.training
    weighted = features * sample_weights[:, None]
    largest = jnp.linalg.eigvalsh(features.T @ weighted / len(features))[-1] / 2 + decay
    root = jnp.sqrt(decay / largest)

    @jax.grad
    def gradient(weights: Array) -> Array:
        losses = sample_weights * cross_entropies(weights, features, targets)
        return losses.mean() + decay / 2 * jnp.sum(weights**2)

    def step(carry: tuple) -> tuple:
        weights, ahead, slope, count = carry
        moved = ahead - slope / largest
        ahead = moved + (1 - root) / (1 + root) * (moved - weights)
        return moved, ahead, gradient(ahead), count + 1

    def unfinished(carry: tuple) -> Array:
        return (jnp.linalg.norm(carry[2]) > 1e-5) & (carry[3] < 10_000)

    start = jnp.zeros((features.shape[1], CLASSES))
    return jax.lax.while_loop(unfinished, step, (start, start, gradient(start), 0))[1]


def test_error(samples: Samples, weights: Float[Array, "size classes"]) -> Float[Array, ""]:
    """The share of test samples that are given a wrong class."""
    features, targets = samples.test
    return jnp.mean(jnp.argmax(features @ weights, axis=1) != jnp.argmax(targets, axis=1))
