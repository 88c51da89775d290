"""The paper's analysis of the reduced model: ω_h the strength of head h's key-query circuit, μ_h of its output."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jattn.data.linear_prompts import LinearPrompts


def best_rate(world: LinearPrompts) -> float:
    """η* = 1/(1 + (1 + σ²) d/L), the debiased step's best rate for isotropic covariates as ω → 0."""
    return 1 / (1 + (1 + world.noise_variance) * world.dimension / world.context_length)


def best_preconditioner(world: LinearPrompts) -> Float[np.ndarray, "dimension dimension"]:
    """P = (Σ(1 + 1/L) + (tr Σ + dσ²)/L · I)⁻¹, the best preconditioner of the debiased step.

    From the stationarity of E(y_q − βᵀŜPx_q − noise)² with the Wishart moment E[ŜAŜ] = ΣAΣ(1+1/L) + Σ tr(ΣA)/L
    and β ~ N(0, I/d).
    """
    covariance, length = world.covariance, world.context_length
    ridge = (np.trace(covariance) + world.dimension * world.noise_variance) / length
    inverse = np.linalg.inv(covariance * (1 + 1 / length) + ridge * np.eye(world.dimension))
    return inverse.astype(np.float32)


def approximate_loss(
    omega: Float[Array, " heads"], mu: Float[Array, " heads"], world: LinearPrompts
) -> Float[Array, ""]:
    """1 + σ² − 2μᵀω + μᵀ(ωωᵀ + (1+σ²)/L · exp(d ωωᵀ))μ, the population loss for long contexts."""
    outer = jnp.outer(omega, omega)
    noise = 1 + world.noise_variance
    quadratic = outer + noise / world.context_length * jnp.exp(world.dimension * outer)
    return noise - 2 * mu @ omega + mu @ quadratic @ mu


def valley_rate(omega: Float[Array | np.ndarray, "..."], world: LinearPrompts) -> Float[Array, "..."]:
    """The rate 2ωμ that is best for two opposite heads at strength ω: 1/(1 + (1+σ²) sinh(dω²)/(Lω²))."""
    growth = jnp.sinh(world.dimension * omega**2) / omega**2
    return 1 / (1 + (1 + world.noise_variance) * growth / world.context_length)


def gradient_flow(
    omega: Float[Array, " heads"], mu: Float[Array, " heads"], world: LinearPrompts, *, time: float, points: int
) -> tuple[Float[Array, "points heads"], Float[Array, "points heads"]]:
    """(ω, μ) along the gradient flow of `approximate_loss`, at `points` times spaced evenly in the logarithm.

    Runge-Kutta steps of order four, as short as the stiffest direction of the valley asks for.
    """
    slope = jax.grad(lambda at: -approximate_loss(at[0], at[1], world))
    step_length, steps = 0.02, round(time / 0.02)
    marks = jnp.unique(jnp.geomspace(1, steps, points).astype(int), size=points, fill_value=steps)

    def step(at: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        def move(slopes: tuple[Array, Array], length: float) -> tuple[Array, Array]:
            return jax.tree.map(lambda value, change: value + length * change, at, slopes)

        first = slope(at)
        second = slope(move(first, step_length / 2))
        third = slope(move(second, step_length / 2))
        fourth = slope(move(third, step_length))
        mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth)
        new = move(mean, step_length)
        return new, new

    _, (omegas, mus) = jax.jit(lambda at: jax.lax.scan(step, at, length=steps))((omega, mu))
    return omegas[marks - 1], mus[marks - 1]
