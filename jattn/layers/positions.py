"""Positions given to queries and keys."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def turn_by_position(
    features: Float[Array, "*batch length heads width"],
    angles: Float[Array, "heads width"],
    positions: Int[Array, "#*batch length"] | Int[Array, " length"],
) -> Float[Array, "*batch length heads double_width"]:
    """[x cos(θ p), x sin(θ p)]: of a query and a key so treated the product is Σ_d q_d k_d cos(θ_d (p_q - p_k)).

    The linearised relative positions of Qin et al. (2023, arXiv 2307.14995, LRPE), with an angle for every feature of
    every head; the features double.
    """
    turns = positions[..., None, None].astype(angles.dtype) * angles
    return jnp.concatenate([features * jnp.cos(turns), features * jnp.sin(turns)], axis=-1).astype(features.dtype)


def geometric_angles(heads: int, width: int, base: float = 10000.0) -> Float[Array, "heads width"]:
    """base^(-2 d / width) for feature d of every head: where learned angles start."""
    return jnp.broadcast_to(base ** (-2 * jnp.arange(width) / width), (heads, width))


def rotate_by_position(
    features: Float[Array, "*batch length heads width"],
    positions: Int[Array, "#*batch length"] | Int[Array, " length"],
    base: float = 10000.0,
) -> Float[Array, "*batch length heads width"]:
    """Features d and d + width/2 of every head, as a plane, turned by the angle base^(-2 d / width) · position.

    The product of a query and a key so turned depends on positions through their difference alone (Su et al. 2021,
    arXiv 2104.09864, section 3.2.2; the planes are made of halves, not of neighbours).

    Raises:
      ValueError: width is odd.
    """
    width = features.shape[-1]
    if width % 2:
        raise ValueError(f"features must have an even width to be turned in planes; got {width}")
    angles = geometric_angles(1, width, base)[:, : width // 2]
    turns = positions[..., None, None].astype(angles.dtype) * angles
    first, second = jnp.split(features, 2, axis=-1)
    cos, sin = jnp.cos(turns), jnp.sin(turns)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(features.dtype)
