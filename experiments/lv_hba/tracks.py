"""On what methods race: data hyper-cleaning on digits, and the first toy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.lv_hba import first_toy
from experiments.lv_hba.config import Race
from experiments.lv_hba.data_cleaning import Samples, cleaning, corrupted_digits, cross_entropies, test_error, trained
from experiments.lv_hba.race import Track

LEVELS = {"digits": (0.5, 1.0), "first_toy": (0.5, 0.9)}
"""Shares of the way until which time is taken."""
RANDOM_STEP = 0.5
"""Standard deviation of a random search's steps in the logits of weights."""
DECAYS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1)
"""Among which baselines without cleaning choose, on validation samples."""


class Cleaned(NamedTuple):
    """What weights of samples are worth.

    Attributes:
      corrupted_down, right_down: share of the samples with wrong and with right labels that lost weight.
      test_error: share of wrong classes among test samples.
    """

    corrupted_down: Float[Array, ""]
    right_down: Float[Array, ""]
    test_error: Float[Array, ""]


def digits_track(given: Race, seed: int) -> Track:
    """Cleaning of digits, from equal weights of all samples; the way is from there to leaving wrong labels out."""

    def hyper_objective(samples: Samples, x: Array) -> Array:
        return cleaning(samples, given.decay, given.stretch).outer(x, _trained(given, samples, x))

    def start(samples: Samples) -> tuple[Array, Array]:
        x = jnp.zeros(given.training)
        return x, _trained(given, samples, x)

    def way(samples: Samples) -> tuple[Array, Array]:
        right = jnp.where(samples.corrupted, -1.0, 0.0)
        return hyper_objective(samples, jnp.zeros(given.training)), hyper_objective(samples, right)

    return Track(
        instance=lambda n: corrupted_digits(given.training, given.validation, given.corrupted, (seed, n)),
        forms={
            "whole": lambda samples: cleaning(samples, given.decay, given.stretch),
            "blocks": lambda samples: cleaning(samples, given.decay, given.stretch, given.blocks),
        },
        start=start,
        hyper_objective=hyper_objective,
        way=jax.jit(way),
    )


def toy_track(given: Race, seed: int) -> Track:
    """The first toy, from the inner solution of its start; the way is from 0, where x is 0, to the least value."""
    return Track(
        instance=lambda n: first_toy.coefficients(given.size, (seed, n)),
        forms={"whole": lambda data: first_toy.equality_toy(data, joint=False), "joint": first_toy.equality_toy},
        start=lambda data: (data.start, first_toy.exact(data, data.start)),
        hyper_objective=first_toy.hyper_objective,
        way=lambda data: (0.0, first_toy.least(data)),
    )


def largest_curvature(given: Race, samples: Samples) -> float:
    """Of the inner objective whatever the weights: softmax regression's is at most half that of least squares."""
    features = np.asarray(samples.training[0], np.float64)
    return float(np.linalg.eigvalsh(features.T @ features / len(features))[-1] / 2 + given.decay)


def cleaned(given: Race, samples: Samples, x: Float[Array, " training"]) -> Cleaned:
    """What was learned, at the exact inner solution."""
    down = (x < 0) * 1.0
    wrong = jnp.sum(down * samples.corrupted) / jnp.sum(samples.corrupted)
    right = jnp.sum(down * ~samples.corrupted) / jnp.sum(~samples.corrupted)
    return Cleaned(wrong, right, test_error(samples, _trained(given, samples, x)))


def without_cleaning(given: Race, samples: Samples, seed: int) -> dict[str, float]:
    """Test errors of equal weights, of random ones from 0 to 1, and of 0 for wrong labels and 1 for the others.

    Each with the weight decay of least validation loss.
    """

    def chosen(sample_weights: Float[Array, " training"]) -> Array:
        found = jax.lax.map(lambda decay: trained(samples, sample_weights, decay), jnp.asarray(DECAYS))
        losses = jax.vmap(lambda weights: cross_entropies(weights, *samples.validation).mean())(found)
        return test_error(samples, found[jnp.argmin(losses)])

    tried = {
        "equal weights": jnp.ones(given.training),
        "random weights": jax.random.uniform(jax.random.key(seed), (given.training,)),
        "wrong labels left out": 1.0 - samples.corrupted,
    }
    run = jax.jit(chosen)
    return {name: float(run(weights)) for name, weights in tried.items()}


def _trained(given: Race, samples: Samples, x: Float[Array, " training"]) -> Float[Array, "size classes"]:
    return trained(samples, jax.nn.sigmoid(given.stretch * x), given.decay)
