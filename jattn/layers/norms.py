"""Norms without parameters."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def simple_rms_norm(features: Float[Array, "... width"], epsilon: float = 1e-8) -> Float[Array, "... width"]:
    """x √width / (|x| + ε), over the last axis, in float32 or wider (Qin et al. 2023, arXiv 2307.14995, SRMSNorm)."""
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    root_mean_square = jnp.sqrt((wide**2).mean(axis=-1, keepdims=True))
    return (wide / (root_mean_square + epsilon)).astype(features.dtype)
