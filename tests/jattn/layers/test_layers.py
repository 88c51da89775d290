"""Norms, positions and feed-forward layers, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn.layers.feed_forward import SimpleGatedLinearUnit
from jattn.layers.norms import simple_rms_norm
from jattn.layers.positions import geometric_angles, turn_by_position


def test_norm_has_unit_mean_square_and_no_scale() -> None:
    features = jax.random.normal(jax.random.key(0), (3, 5, 8))
    normed = simple_rms_norm(features)
    np.testing.assert_allclose((normed**2).mean(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(simple_rms_norm(1000 * features), normed, rtol=1e-5)
    assert simple_rms_norm(features.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_products_of_turned_features_depend_on_differences_of_positions() -> None:
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 4)), rng.normal(size=(2, 1, 4))
    angles = np.asarray(geometric_angles(1, 4))
    np.testing.assert_allclose(angles[0], [1, 1e-2, 1e-4, 1e-6], rtol=1e-5)
    for shift in (0, 31):
        places = jnp.array([7, 3]) + shift
        turned_query, turned_key = (turn_by_position(jnp.asarray(a), jnp.asarray(angles), places) for a in (query, key))
        product = (turned_query[0] * turned_key[1]).sum()
        np.testing.assert_allclose(product, (query[0] * key[1] * np.cos(angles * 4)).sum(), rtol=1e-4)


def test_gate_is_a_product() -> None:
    unit = SimpleGatedLinearUnit(6, 10, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 6))
    first, second = np.split(np.asarray(unit.inner.kernel[...]), 2, axis=1)
    np.testing.assert_allclose(unit(jnp.asarray(x)), ((x @ first) * (x @ second)) @ unit.outer.kernel[...], rtol=1e-3)
