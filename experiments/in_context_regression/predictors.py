"""What the trained models are compared with: predictors of the query's label given a prompt, in closed form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from jattn.data.linear_prompts import LinearPrompts, Prompt

Prediction = Float[Array, "batch tasks"]


def constant(prompt: Prompt) -> Prediction:
    """The mean of the context's labels."""
    return prompt.labels.mean(axis=1)


def gradient_descent(prompt: Prompt, rate: Float[Array, ""] | float) -> Prediction:
    """One step of gradient descent from zero: rate · (1/L) Σ_l y_l x_lᵀ x_q."""
    similarity = jnp.einsum("bld,bd->bl", prompt.covariates, prompt.query)
    return rate * jnp.einsum("bl,blt->bt", similarity, prompt.labels) / prompt.labels.shape[1]


def debiased_gradient_descent(
    prompt: Prompt, preconditioner: Float[Array | np.ndarray, "dimension dimension"]
) -> Prediction:
    """(1/L) Σ_l y_l (x_l − x̄)ᵀ P x_q; P = rate · I for the plain debiased step (He et al. 2025)."""
    centred = prompt.covariates - prompt.covariates.mean(axis=1, keepdims=True)
    query = prompt.query @ preconditioner.T
    similarity = jnp.einsum("bld,bd->bl", centred, query)
    return jnp.einsum("bl,blt->bt", similarity, prompt.labels) / prompt.labels.shape[1]


def head_pair(prompt: Prompt, omega: Float[Array, " heads"], mu: Float[Array, " heads"]) -> Prediction:
    """The reduced model of one task: Σ_h μ_h Σ_l softmax(ω_h Xᵀx_q)_l y_l."""
    similarity = jnp.einsum("bld,bd->bl", prompt.covariates, prompt.query)
    weights = jax.nn.softmax(omega[:, None, None] * similarity, axis=-1)
    return jnp.einsum("h,hbl,blt->bt", mu, weights, prompt.labels)


def ridge(prompt: Prompt, penalty: float, reads: Float[Array, "tasks dimension"] | None = None) -> Prediction:
    """(XᵀX + penalty I)⁻¹ Xᵀy, without an intercept; a task sees the covariates it reads.

    A penalty of 0 is ordinary least squares and needs at least as many examples as covariates. Solved by conjugate
    gradients: on a CPU, two batched LAPACK calls in one program can wait for each other for ever.
    """
    if reads is None:
        reads = jnp.ones((prompt.labels.shape[2], prompt.query.shape[1]))

    def one_task(labels: Float[Array, "batch length"], read: Float[Array, " dimension"]) -> Float[Array, " batch"]:
        covariates = prompt.covariates * read
        # A covariate the task does not read has an empty column: any positive diagonal gives it the coefficient 0.
        gram = jnp.einsum("bli,blj->bij", covariates, covariates) + jnp.diag(penalty + (1 - read))
        moment = jnp.einsum("bli,bl->bi", covariates, labels)
        coefficients, _ = jax.vmap(lambda matrix, vector: cg(lambda x: matrix @ x, vector, tol=1e-6))(gram, moment)
        return jnp.einsum("bi,bi->b", coefficients, prompt.query)

    return jax.vmap(one_task, in_axes=(2, 0), out_axes=1)(prompt.labels, reads)


def bayes(prompt: Prompt, world: LinearPrompts) -> Prediction:
    """The posterior mean under the world's own prior β ~ N(0, I/k) and noise: ridge with penalty σ²k."""
    index = jnp.arange(world.dimension)
    outputs = []
    for task, (first, past) in enumerate(world.task_features):
        read = ((index >= first) & (index < past)).astype(prompt.query.dtype)
        one = replace(prompt, labels=prompt.labels[..., task : task + 1], target=prompt.target[..., task : task + 1])
        outputs.append(ridge(one, world.noise_variance * (past - first), read[None]))
    return jnp.concatenate(outputs, axis=1)
