"""Controls: what a finding is to be held against. Heads drawn at random, permuted labels, resampled pairs, overlaps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key
from scipy.stats import hypergeom


def random_heads(
    key: Key[Array, ""],
    like: Bool[Array, "layers heads"],
    *,
    outside: Bool[Array, "layers heads"] | None = None,
    same_layers: bool = True,
) -> Bool[Array, "layers heads"]:
    """As many heads as `like` has, drawn at random from those outside of it.

    Args:
      outside: heads that are not drawn, besides those of `like`.
      same_layers: as many in each layer as `like` has; else as many in all.

    Raises:
      ValueError: there are not as many others, where the masks are known.
    """
    taken = like if outside is None else like | outside
    draws = jnp.where(taken, -1.0, jax.random.uniform(key, like.shape))
    axis = 1 if same_layers else None
    wanted = like.sum(axis=axis, keepdims=True)
    if not isinstance(taken, Tracer) and bool((wanted > (~taken).sum(axis=axis, keepdims=True)).any()):
        raise ValueError("like must leave as many heads outside as it has; there are fewer")
    ranks = jnp.argsort(jnp.argsort(-draws, axis=axis), axis=axis).reshape(like.shape)
    return ranks < wanted


class Difference(NamedTuple):
    """A mean difference and its interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    key: Key[Array, ""],
    one: Float[Array, " items"],
    other: Float[Array, " items"],
    *,
    level: float = 0.9,
    draws: int = 10_000,
) -> Difference:
    """Mean of one - other over items measured under both, with the percentile interval of items drawn anew.

    Raises:
      ValueError: no items, another number of them in one than in the other, or a level outside of (0, 1).
    """
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"one and other must be of the same items; got shapes {one.shape} and {other.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1; got {level}")
    differences = one - other
    # Item by item how often it is drawn would be as well; this keeps memory at a batch of draws.
    keys = jax.random.split(key, draws)
    means = jax.lax.map(lambda key: jax.random.choice(key, differences, (len(one),)).mean(), keys, batch_size=256)
    low, high = jnp.quantile(means, jnp.array([(1 - level) / 2, (1 + level) / 2]))
    return Difference(float(differences.mean()), float(low), float(high))


def permutation_p_value(
    key: Key[Array, ""],
    values: Float[Array, " items"],
    labels: Bool[Array, " items"],
    *,
    draws: int = 10_000,
) -> float:
    """How often labels put at random separate the means by as much as the labels given: one-sided, with themselves.

    Raises:
      ValueError: values and labels of other shapes, or labels that are all alike.
    """
    if values.shape != labels.shape or values.ndim != 1:
        raise ValueError(f"values and labels must be of the same items; got shapes {values.shape} and {labels.shape}")
    if bool(labels.all()) or not bool(labels.any()):
        raise ValueError("labels must have both kinds; got one")

    def gap(labels: Array) -> Array:
        return values.mean(where=labels) - values.mean(where=~labels)

    keys = jax.random.split(key, draws)
    at_random = jax.lax.map(lambda key: gap(jax.random.permutation(key, labels)), keys, batch_size=256)
    return float((1 + (at_random >= gap(labels)).sum()) / (1 + draws))


class Overlap(NamedTuple):
    """Of two sets: how many members they share, how many by chance, and how probable as many are by chance."""

    shared: int
    expected: float
    p_value: float


def overlap(
    one: Bool[np.ndarray, "layers heads"], other: Bool[np.ndarray, "layers heads"], *, same_layers: bool = False
) -> Overlap:
    """The overlap of two sets of heads, against sets of these sizes drawn at random (hypergeometric).

    Args:
      same_layers: of these sizes in each layer, so that layers both sets have in common are no finding; the numbers
        shared in each are independent, and their sum has the convolution of hypergeometric distributions.

    Raises:
      ValueError: masks of other shapes.
    """
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        raise ValueError(f"one and other must have the same shape; got {one.shape} and {other.shape}")
    groups = (one, other) if same_layers else (one.reshape(1, -1), other.reshape(1, -1))
    sizes, drawn, heads = groups[0].sum(axis=1), groups[1].sum(axis=1), groups[0].shape[1]
    chances = np.ones(1)
    for size, draws in zip(sizes.tolist(), drawn.tolist(), strict=True):
        chances = np.convolve(chances, hypergeom.pmf(np.arange(min(size, draws) + 1), heads, size, draws))
    shared = int((one & other).sum())
    return Overlap(shared, float((sizes * drawn).sum() / heads), min(float(chances[shared:].sum()), 1.0))
