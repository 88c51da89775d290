"""Norms without parameters."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def layer_norm(features: Float[Array, "... width"], epsilon: float = 1e-8) -> Float[Array, "... width"]:
    """(x - mean) / √(variance + ε) over the last axis, without scale and shift, in float32 or wider.

    On the sphere of radius √width (Ba et al. 2016, arXiv 1607.06450, section 3), where the nearest of several points is
    the one with the largest product. Features that are all the same give 0.
    """
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return (centred / jnp.sqrt(variance + epsilon)).astype(features.dtype)


def simple_rms_norm(features: Float[Array, "... width"], epsilon: float = 1e-8) -> Float[Array, "... width"]:
    """x √width / (|x| + ε), over the last axis, in float32 or wider (Qin et al. 2023, arXiv 2307.14995, SRMSNorm)."""
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    root_mean_square = jnp.sqrt((wide**2).mean(axis=-1, keepdims=True))
    return (wide / (root_mean_square + epsilon)).astype(features.dtype)
