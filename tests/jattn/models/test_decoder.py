"""The decoder: its formula in float64 numpy, what it must not see, its size, its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.mechanisms import CausalSelfAttention
from jattn.models.decoder import Decoder, DecoderConfig, next_token_losses

VOCABULARY, WIDTH, LAYERS, HEADS, HIDDEN, BASE = 13, 16, 2, 4, 24, 100.0


def grouped(width: int, heads: int, layer: int, rngs: nnx.Rngs, kv_heads: int = 2) -> CausalSelfAttention:
    return CausalSelfAttention(width, heads, kv_heads=kv_heads, base=BASE, rngs=rngs)


CONFIG = DecoderConfig(VOCABULARY, WIDTH, LAYERS, HEADS, HIDDEN, attention=grouped)


@nnx.jit
def run(model: Decoder, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    return model(tokens, positions=positions)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


def tokens(length: int = 11) -> jax.Array:
    return jax.random.randint(jax.random.key(1), (2, length), 0, VOCABULARY)


def weights_of(model: nnx.Module) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.asarray(value[...], np.float64) for path, value in flat}


def by_formula(weights: dict[str, np.ndarray], tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Token by token and head by head."""
    dim, groups = WIDTH // HEADS, 2

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.scale"]

    def turn(x: np.ndarray, place: int) -> np.ndarray:
        """As complex numbers, whose real parts are the first half."""
        turned = (x[: dim // 2] + 1j * x[dim // 2 :]) * np.exp(1j * place * BASE ** (-np.arange(dim // 2) * 2 / dim))
        return np.concatenate([turned.real, turned.imag])

    outputs = []
    for text in tokens:
        x = weights["embedding.embedding"][text]
        for layer in range(LAYERS):
            at = f"blocks.{layer}."
            normed = norm(x, f"{at}attention_norm")
            query, key, value = (normed @ weights[f"{at}attention.{name}.kernel"] for name in ("query", "key", "value"))
            read = np.zeros_like(x)
            for head in range(HEADS):
                own = slice(head * dim, (head + 1) * dim)
                theirs = slice(head // groups * dim, (head // groups + 1) * dim)
                for i in range(len(text)):
                    asked = turn(query[i, own], positions[i])
                    scores = np.array([asked @ turn(key[j, theirs], positions[j]) for j in range(i + 1)]) / dim**0.5
                    chance = np.exp(scores - scores.max())
                    read[i, own] = chance / chance.sum() @ value[: i + 1, theirs]
            x = x + read @ weights[f"{at}attention.output.kernel"]
            inner = norm(x, f"{at}feed_forward_norm") @ weights[f"{at}feed_forward.inner.kernel"]
            gate, up = inner[:, :HIDDEN], inner[:, HIDDEN:]
            x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{at}feed_forward.outer.kernel"]
        outputs.append(norm(x, "norm") @ weights["logits.kernel"])
    return np.stack(outputs)


def test_is_the_formula(model: Decoder) -> None:
    places = np.array([0, 1, 2, 3, 5, 8, 9, 10, 11, 12, 30])
    want = by_formula(weights_of(model), np.asarray(tokens()), places)
    assert np.abs(want).max() > 0.3
    np.testing.assert_allclose(run(model, tokens(), jnp.asarray(places)), want, atol=2e-5)


def test_the_future_is_not_seen_and_the_past_is(model: Decoder) -> None:
    places = jnp.arange(11)
    changed = tokens().at[:, 6].add(1) % VOCABULARY
    before, after = run(model, tokens(), places), run(model, changed, places)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (jnp.abs(before - after)[:, 6:].max(axis=-1) > 1e-4).all()


def test_only_differences_of_positions_count(model: Decoder) -> None:
    here = run(model, tokens(), jnp.arange(11))
    np.testing.assert_allclose(run(model, tokens(), jnp.arange(11) + 57), here, atol=1e-4)
    np.testing.assert_allclose(run(model, tokens(), jnp.arange(11) + jnp.array([[3], [70]])), here, atol=1e-4)
    assert jnp.abs(run(model, tokens(), 2 * jnp.arange(11)) - here).max() > 1e-2


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_number_of_parameters(kv_heads: int) -> None:
    config = DecoderConfig(VOCABULARY, WIDTH, LAYERS, HEADS, HIDDEN, attention=partial(grouped, kv_heads=kv_heads))
    shapes = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    counted = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
    attention = 2 * WIDTH**2 + 2 * WIDTH * WIDTH * kv_heads // HEADS
    assert counted == 2 * VOCABULARY * WIDTH + LAYERS * (attention + 3 * WIDTH * HIDDEN + 2 * WIDTH) + WIDTH


def test_gradients_are_finite_differences_of_the_formula(model: Decoder) -> None:
    graph, parameters = nnx.split(model, nnx.Param)

    @jax.jit
    def slopes(parameters: nnx.State) -> nnx.State:
        return jax.grad(lambda p: next_token_losses(nnx.merge(graph, p), tokens()).mean())(parameters)

    found = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(slopes(parameters))}
    weights, text = weights_of(model), np.asarray(tokens())

    def loss(weights: dict[str, np.ndarray]) -> float:
        logits = by_formula(weights, text[:, :-1], np.arange(10))
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(chances, text[:, 1:, None], -1).mean()

    rng = np.random.default_rng(0)
    for name, weight in weights.items():
        assert np.isfinite(found[name]).all()
        direction = rng.normal(size=weight.shape)
        ahead, behind = (loss(weights | {name: weight + step * direction}) for step in (1e-5, -1e-5))
        np.testing.assert_allclose((found[name] * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-3, atol=2e-5)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="heads must cut the width of 12 into even parts; got 4"):
        CausalSelfAttention(12, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="kv_heads must divide the 4 heads; got 3"):
        CausalSelfAttention(16, 4, kv_heads=3, rngs=nnx.Rngs(0))
