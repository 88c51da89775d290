"""Prompts for in-context linear regression: labelled examples of a fresh linear task, and a query.

He, Pan, Chen and Yang 2025 (arXiv 2503.12734), section 2: x ~ N(0, Σ), β ~ N(0, I/d), y = βᵀx + noise.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from kernels.trees import register_dataclass


@dataclass(frozen=True)
class LinearPrompts:
    """The distribution of prompts.

    Attributes:
      dimension: number of covariates d.
      context_length: number of labelled examples L.
      noise_variance: variance σ² of the label noise, in the query's label too.
      covariate_correlation: ρ of Σ_ij = ρ^|i-j|; 0 for isotropic covariates.
      task_features: the (first, past-the-last) covariates each task's label depends on; one label a task. A task
        of k covariates has β ~ N(0, I/k), so every label has variance 1 + σ² when covariates are isotropic.
    """

    dimension: int
    context_length: int
    noise_variance: float
    covariate_correlation: float
    task_features: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise ValueError(f"dimension must be at least 1; got {self.dimension}")
        if self.context_length < 1:
            raise ValueError(f"context_length must be at least 1; got {self.context_length}")
        if not self.noise_variance >= 0:
            raise ValueError(f"noise_variance must not be negative; got {self.noise_variance}")
        if not -1 < self.covariate_correlation < 1:
            raise ValueError(f"covariate_correlation must be between -1 and 1; got {self.covariate_correlation}")
        if not self.task_features:
            raise ValueError("task_features must name at least one task; got none")
        for first, past in self.task_features:
            if not 0 <= first < past <= self.dimension:
                raise ValueError(
                    f"task_features must be ranges within 0 to dimension = {self.dimension}; got ({first}, {past})"
                )

    @property
    def covariance(self) -> Float[np.ndarray, "dimension dimension"]:
        """Σ of the covariates, a constant of whatever is compiled with it."""
        index = np.arange(self.dimension)
        return np.float32(self.covariate_correlation) ** np.abs(index[:, None] - index)


@register_dataclass
@dataclass(frozen=True)
class Prompt:
    """A batch of prompts, or batches of them along leading axes."""

    covariates: Float[Array, "*any batch length dimension"]
    labels: Float[Array, "*any batch length tasks"]
    query: Float[Array, "*any batch dimension"]
    target: Float[Array, "*any batch tasks"]


def sample_prompts(world: LinearPrompts, batch: int, key: Key[Array, ""]) -> Prompt:
    """A batch of prompts, each of a fresh task; the target is the query's label, with its noise."""
    length, dimension, tasks = world.context_length + 1, world.dimension, len(world.task_features)
    covariate_key, task_key, noise_key = jax.random.split(key, 3)
    covariates = jax.random.normal(covariate_key, (batch, length, dimension))
    if world.covariate_correlation:
        covariates = covariates @ np.linalg.cholesky(world.covariance).T
    index = jnp.arange(dimension)
    reads = jnp.array([(index >= first) & (index < past) for first, past in world.task_features])
    weights = jax.random.normal(task_key, (batch, tasks, dimension)) * reads * reads.sum(axis=1, keepdims=True) ** -0.5
    noise = jax.random.normal(noise_key, (batch, length, tasks)) * world.noise_variance**0.5
    labels = jnp.einsum("bld,btd->blt", covariates, weights) + noise
    return Prompt(covariates[:, :-1], labels[:, :-1], covariates[:, -1], labels[:, -1])


def prompt_tokens(
    prompt: Prompt,
) -> tuple[Float[Array, "batch length width"], Float[Array, "batch 1 width"]]:
    """Context tokens (x_l, y_l) and the query token (x_q, 0), of width dimension + tasks."""
    tokens = jnp.concatenate([prompt.covariates, prompt.labels], axis=-1)
    query = jnp.concatenate([prompt.query, jnp.zeros_like(prompt.target)], axis=-1)
    return tokens, query[:, None]
