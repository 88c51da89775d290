"""Norms, positions and feed-forward layers, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.layers.auxiliary import AuxiliaryLoss, auxiliary_losses
from jattn.layers.feed_forward import GatedLinearUnit
from jattn.layers.norms import simple_rms_norm
from jattn.layers.positions import geometric_angles, rotate_by_position, turn_by_position


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
    unit = GatedLinearUnit(6, 10, None, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 6))
    first, second = np.split(np.asarray(unit.inner.kernel[...]), 2, axis=1)
    np.testing.assert_allclose(unit(jnp.asarray(x)), ((x @ first) * (x @ second)) @ unit.outer.kernel[...], rtol=1e-3)


def test_halves_turn_as_complex_numbers() -> None:
    rng = np.random.default_rng(1)
    features, places = rng.normal(size=(2, 5, 3, 8)), np.array([[0, 1, 2, 3, 4], [9, 7, 70, 0, 1]])
    angles = 100.0 ** (-np.arange(4) / 4) * places[..., None, None]
    turned = (features[..., :4] + 1j * features[..., 4:]) * np.exp(1j * angles)
    found = rotate_by_position(jnp.asarray(features), jnp.asarray(places), 100.0)
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), np.linalg.norm(features, axis=-1), rtol=1e-5)
    assert rotate_by_position(jnp.ones((3, 2, 4), jnp.bfloat16), jnp.arange(3)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="even width to be turned in planes; got 3"):
        rotate_by_position(jnp.ones((1, 1, 3)), jnp.arange(1))


def test_gate_of_swiglu_is_silu() -> None:
    unit = GatedLinearUnit(6, 10, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 6))
    gate, value = np.split(x @ np.asarray(unit.inner.kernel[...], np.float64), 2, axis=-1)
    want = (gate / (1 + np.exp(-gate)) * value) @ np.asarray(unit.outer.kernel[...], np.float64)
    np.testing.assert_allclose(unit(jnp.asarray(x)), want, rtol=1e-3, atol=1e-5)


def test_auxiliary_losses_are_means_over_layers_of_the_last_call() -> None:
    class Layer(nnx.Module):
        def __init__(self) -> None:
            self.balance = AuxiliaryLoss(jnp.zeros(()))

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([Layer(), Layer(), nnx.Linear(1, 1, rngs=nnx.Rngs(0))])

    model = Model()
    for value in (1.0, 5.0):
        model.layers[0].balance[...] = jnp.float32(value)
    model.layers[1].balance[...] = jnp.float32(2.0)
    assert auxiliary_losses(model) == {"balance": 3.5}
    assert auxiliary_losses(nnx.Linear(1, 1, rngs=nnx.Rngs(0))) == {}
