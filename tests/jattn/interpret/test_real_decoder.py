"""What is shown of captures on a small random model, on SmolLM2 where it has been fetched (`jattn weights`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kernels
from jattn.interpret import capture, mask_heads, one_head_each
from jattn.models.language_model import LanguageModel
from jattn.pretrained import find
from jattn.pretrained.load import load

pytestmark = pytest.mark.slow

NAME = "smollm2-135m"
LAYERS, HEADS = 30, 9
STATISTICS = ("entropy", "maximum", kernels.ColumnSums())
ASKED = {"layers.*.attention.statistics": STATISTICS}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    try:
        find(NAME)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    return load(NAME)[0]


@pytest.fixture(scope="module")
def tokens(model) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, model.config.vocabulary, (1, 64)))


def test_capturing_changes_no_bit(model, tokens) -> None:
    """Operation by operation."""
    plain = model(tokens)
    seen, sites = capture(model, tokens, sites=["layers.*.attention.weights", "layers.*.residual", "logits"])
    np.testing.assert_array_equal(seen, plain)
    np.testing.assert_array_equal(sites["logits"], plain)
    assert len(sites) == 2 * LAYERS + 1


def test_statistics_are_those_of_the_weights(model, tokens) -> None:
    sites = capture(model, tokens, sites=["layers.*.attention.weights"], statistics=ASKED).sites
    for layer in range(LAYERS):
        found, weights = (sites[f"layers.{layer}.attention.{name}"] for name in ("statistics", "weights"))
        weights = np.asarray(weights, np.float64)
        np.testing.assert_allclose(found.column_sums, weights.sum(axis=2), rtol=1e-3, atol=1e-4)
        entropy = -np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1)), 0).sum(axis=-1)
        np.testing.assert_allclose(found.entropy, entropy, atol=1e-3)


def test_statistics_of_every_head_of_a_long_prompt_are_made_in_linear_memory(model) -> None:
    """4,096 tokens; the weights of one layer alone would take 0.6 GB."""
    graph, state = nnx.split(model)

    def told(state, tokens):
        return capture(nnx.merge(graph, state), tokens, statistics=ASKED).sites

    def temporary(length: int) -> int:
        text = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return jax.jit(told).lower(state, text).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(1024), temporary(4096)
    assert long < 4.5 * short
    assert long < HEADS * 4096**2 * 4


def test_a_sweep_over_all_heads_is_compiled_once(model, tokens) -> None:
    graph, state = nnx.split(model)

    @jax.jit
    def last(state, mask):
        return capture(nnx.merge(graph, state), tokens, edits=mask_heads(mask)).output[0, -1]

    plain = np.asarray(model(tokens))[0, -1]
    np.testing.assert_allclose(last(state, jnp.zeros((LAYERS, HEADS), bool)), plain, atol=1e-3)
    changed = [np.abs(last(state, mask) - plain).max() for mask in one_head_each(LAYERS, HEADS)[::30]]
    assert len(changed) == 9
    assert min(changed) > 1e-3
    assert last._cache_size() == 1
