"""Heads as two circuits, against multi-head attention with its four projections spelt out in float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kernels
from jattn.mechanisms import MultiHeadAttention, multi_head_attention

PROJECTIONS = ("query", "key", "value", "output")
KERNELS = {"softmax": kernels.attention, "linear": kernels.linear_attention}


def textbook(queries: np.ndarray, tokens: np.ndarray, weights: dict[str, np.ndarray], kernel: str) -> np.ndarray:
    """What each head adds: project to queries, keys and values, attend within each prompt, project out."""
    batch, query_length, _ = queries.shape
    heads, outputs, _ = weights["output"].shape
    answer = np.empty((batch, query_length, heads, outputs))
    for prompt, (asking, read) in enumerate(zip(queries, tokens, strict=True)):
        for head in range(heads):
            q, k, v = (
                rows @ weights[name][head].T for name, rows in (("query", asking), ("key", read), ("value", read))
            )
            scores = q @ k.T / np.sqrt(q.shape[1])
            if kernel == "softmax":
                scores = np.exp(scores)
                scores /= scores.sum(axis=1, keepdims=True)
            answer[prompt, :, head] = scores @ v @ weights["output"][head].T
    return answer


def inputs(features: int, *, query_length: int = 2, length: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(features)
    return rng.normal(size=(3, query_length, features)), rng.normal(size=(3, length, features))


def projections(model: MultiHeadAttention) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(model, name)[...], np.float64) for name in PROJECTIONS}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("features", "heads", "outputs"), [(1, 1, 1), (6, 1, 1), (4, 3, 2), (3, 2, 7)])
def test_is_textbook_multi_head_attention(features: int, heads: int, outputs: int, kernel: str) -> None:
    model = MultiHeadAttention(features, heads, outputs, rngs=nnx.Rngs(0), attention=KERNELS[kernel])
    queries, tokens = inputs(features)
    answers = nnx.jit(lambda model, *at: (model.head_outputs(*at), model(*at)))
    each, answer = answers(model, jnp.float32(queries), jnp.float32(tokens))
    truth = textbook(queries, tokens, projections(model), kernel)
    assert (np.abs(truth).max(axis=(0, 1)) > 1e-3).all()
    np.testing.assert_allclose(each, truth, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(answer, truth.sum(axis=2), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_the_textbooks(kernel: str) -> None:
    model = MultiHeadAttention(4, 3, 2, rngs=nnx.Rngs(1), attention=KERNELS[kernel])
    queries, tokens = inputs(4)
    cotangent = np.random.default_rng(0).normal(size=(3, 2, 2))
    gradients = nnx.jit(nnx.grad(lambda model, *at: (model(*at) * jnp.float32(cotangent)).sum()))(
        model, jnp.float32(queries), jnp.float32(tokens)
    )
    weights = projections(model)
    for name in PROJECTIONS:
        direction = np.random.default_rng(len(name)).normal(size=weights[name].shape)

        def along(step: float, name: str = name, direction: np.ndarray = direction) -> float:
            moved = weights | {name: weights[name] + step * direction}
            return float((textbook(queries, tokens, moved, kernel).sum(axis=2) * cotangent).sum())

        expected = (along(1e-5) - along(-1e-5)) / 2e-5
        assert abs(expected) > 0.1
        np.testing.assert_allclose((np.asarray(gradients[name][...]) * direction).sum(), expected, rtol=1e-3)


def test_circuits_are_products_of_the_projections() -> None:
    model = MultiHeadAttention(4, 3, 2, rngs=nnx.Rngs(2))
    weights = projections(model)
    for head in range(3):
        key_query = weights["key"][head].T @ weights["query"][head] / 2  # 2 = √4 features
        np.testing.assert_allclose(model.key_query_circuit()[head], key_query, rtol=1e-5, atol=1e-6)
        output_value = weights["output"][head] @ weights["value"][head]
        np.testing.assert_allclose(model.output_value_circuit()[head], output_value, rtol=1e-5, atol=1e-6)


def test_a_head_whose_score_is_one_feature_reads_by_that_feature() -> None:
    # Key feature 0 answers query feature 1 only; what is read adds its feature 0 to the only output.
    key_query = jnp.zeros((1, 2, 2)).at[0, 0, 1].set(1.0)
    output_value = jnp.zeros((1, 1, 2)).at[0, 0, 0].set(1.0)
    tokens = jnp.array([[[0.0, 5.0], [1.0, -7.0]]])
    for strength in (-2.0, 0.0, 30.0):
        answer = multi_head_attention(jnp.array([[[9.0, strength]]]), tokens, key_query, output_value)
        np.testing.assert_allclose(answer[0, 0, 0, 0], 1 / (1 + np.exp(-strength)), rtol=1e-6)


def test_projections_start_uniform_within_one_over_root_features() -> None:
    features = 25
    weights = projections(MultiHeadAttention(features, 40, 10, rngs=nnx.Rngs(3)))
    shapes = {"query": (40, 25, 25), "key": (40, 25, 25), "value": (40, 25, 25), "output": (40, 10, 25)}
    for name, weight in weights.items():
        assert weight.shape == shapes[name]
        assert np.abs(weight).max() <= 1 / 5
        # Ten thousand numbers or more: every tenth of the interval gets its share to within five standard errors.
        shares = np.histogram(weight, bins=10, range=(-1 / 5, 1 / 5))[0] / weight.size
        np.testing.assert_allclose(shares, 0.1, atol=5 * np.sqrt(0.09 / weight.size))
    drawn = np.concatenate([weights[name].ravel()[:10_000] for name in PROJECTIONS]).reshape(4, -1)
    np.testing.assert_allclose(np.corrcoef(drawn), np.eye(4), atol=0.05)  # drawn apart from one another


def test_another_seed_gives_other_projections_and_the_same_seed_the_same() -> None:
    first, again, other = (projections(MultiHeadAttention(4, 2, 1, rngs=nnx.Rngs(seed))) for seed in (0, 0, 1))
    for name in PROJECTIONS:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).all()


@pytest.mark.parametrize("name", ["features", "heads", "outputs"])
def test_counts_below_one(name: str) -> None:
    counts = {"features": 4, "heads": 2, "outputs": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        MultiHeadAttention(**counts, rngs=nnx.Rngs(0))


@pytest.fixture
def library_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a wrong argument to the library's own checks, as it is outside the tests."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": (3, 2, 5)}, "queries must have the tokens' 4 features; got shape"),
        ({"tokens": (3, 5, 3)}, "queries must have the tokens' 3 features"),
        ({"key_query": (2, 4, 5)}, "key_query must read 4 features on both sides"),
        ({"key_query": (2, 5, 4)}, "key_query must read 4 features on both sides"),
        ({"output_value": (2, 1, 5)}, "output_value must read 4 features in 2 heads"),
        ({"output_value": (1, 1, 4)}, "output_value must read 4 features in 2 heads"),
        ({"key_query": (1, 4, 4)}, "output_value must read 4 features in 1 heads"),
        ({"tokens": (1, 5, 4)}, "query and key must agree in batch"),
    ],
)
def test_circuits_that_do_not_fit(wrong: dict, message: str, library_checks: None) -> None:
    fitting = {"queries": (3, 2, 4), "tokens": (3, 5, 4), "key_query": (2, 4, 4), "output_value": (2, 1, 4)}
    multi_head_attention(**{name: jnp.ones(shape) for name, shape in fitting.items()})
    with pytest.raises(ValueError, match=message):
        multi_head_attention(**{name: jnp.ones(shape) for name, shape in (fitting | wrong).items()})
