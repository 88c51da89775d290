"""Contrastive losses, and the two quantities that they are made of (Wang and Isola 2020, arXiv 2005.10242)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Vectors = Float[Array, "batch width"]


def unit(vectors: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Vectors over their norms, with a derivative at 0."""
    return vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-12)


def standardised(features: Vectors, like: Float[Array, "others width"]) -> Vectors:
    """Features at mean 0 and variance 1 of others. Nothing that is contrasted depends on their mean, which is large."""
    return (features - like.mean(axis=0)) * jax.lax.rsqrt(like.var(axis=0) + 1e-5)


def cosine(first: Vectors, second: Vectors) -> Float[Array, ""]:
    """The mean cosine of pairs."""
    return jnp.sum(unit(first) * unit(second), axis=-1).mean()


def info_nce(first: Vectors, second: Vectors, temperature: float) -> Float[Array, ""]:
    """SimCLR's loss of two views: each of the 2 · batch projections is to find its other view among all others."""
    both = unit(jnp.concatenate([first, second]))
    count = len(first)
    logits = both @ both.T / temperature
    logits = jnp.where(jnp.eye(2 * count, dtype=bool), -jnp.inf, logits)
    partner = (jnp.arange(2 * count) + count) % (2 * count)
    return optax.softmax_cross_entropy_with_integer_labels(logits, partner).mean()


def simsiam(predicted: tuple[Vectors, Vectors], targets: tuple[Vectors, Vectors]) -> Float[Array, ""]:
    """-½ [cos(p1, z2) + cos(p2, z1)]. The caller holds the projections z constant."""
    return -0.5 * (cosine(predicted[0], targets[1]) + cosine(predicted[1], targets[0]))


def byol(predicted: tuple[Vectors, Vectors], targets: tuple[Vectors, Vectors]) -> Float[Array, ""]:
    """2 - 2 cos(p1, z2') and the same with views exchanged, mean. The caller holds the target network's z' constant."""
    return 2 + 2 * simsiam(predicted, targets)


def alignment(first: Vectors, second: Vectors) -> Float[Array, ""]:
    """E ‖u - u'‖² of unit features of two views."""
    return jnp.sum((unit(first) - unit(second)) ** 2, axis=-1).mean()


def uniformity(features: Vectors) -> Float[Array, ""]:
    """log E exp(-2 ‖u - u'‖²) over pairs of different images; the lower, the more evenly spread. Between -8 and 0."""
    units = unit(features)
    count = len(units)
    distances = 2 - 2 * units @ units.T
    others = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, -2 * distances)
    return jax.nn.logsumexp(others) - jnp.log(count * (count - 1))
