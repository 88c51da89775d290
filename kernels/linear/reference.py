"""Linear attention written to be read: all pairs, or token by token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def decay_between(log_decay: Float[Array, "*problems length"]) -> Float[Array, "*problems length length"]:
    """exp of the log decays behind token j up to token i, at (i, j); 0 where j comes after i."""
    passed = log_decay.cumsum(axis=-1)
    between = passed[..., :, None] - passed[..., None, :]
    allowed = jnp.tril(jnp.ones(between.shape[-2:], bool))
    return jnp.where(allowed, jnp.exp(jnp.where(allowed, between, 0)), 0)


def decayed_product(
    query: Float[Array, "*#problems length width"],
    key: Float[Array, "*#problems length width"],
    value: Float[Array, "*#problems length value_width"],
    log_decay: Float[Array, "*#problems length"],
) -> Float[Array, "*problems length value_width"]:
    """Σ_{j ≤ i} decay_ij (query_i · key_j) value_j."""
    scores = jnp.einsum("...id,...jd->...ij", query, key) * decay_between(log_decay)
    return jnp.einsum("...ij,...je->...ie", scores, value)


def unit_solve(
    query: Float[Array, "*#problems length width"],
    key: Float[Array, "*#problems length width"],
    target: Float[Array, "*#problems length value_width"],
    log_decay: Float[Array, "*#problems length"],
) -> Float[Array, "*problems length value_width"]:
    """The u of which u_i + Σ_{j < i} decay_ij (query_i · key_j) u_j = target_i."""
    scores = jnp.einsum("...id,...jd->...ij", query, key) * decay_between(log_decay)
    strict = jnp.tril(scores, -1)
    return jax.scipy.linalg.solve_triangular(
        jnp.eye(strict.shape[-1], dtype=strict.dtype) + strict, target, lower=True, unit_diagonal=True
    )
