"""Mixture of heads: gates against their formulas, multi-head attention where nothing is left out, the sparse path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jattn.layers.auxiliary import AuxiliaryLoss, auxiliary_losses
from jattn.mechanisms import (
    CausalSelfAttention,
    FullAttention,
    MixtureOfHeadsAttention,
    learned_routing,
    query_norm_routing,
    sparse_heads,
)
from jattn.models.decoder import Decoder, DecoderConfig
from jattn.train import Generated, create_state
from jattn.train.step import build_dispatch

WIDTH, HEADS, LENGTH = 32, 8, 19
DIM = WIDTH // HEADS


def layer(**options) -> MixtureOfHeadsAttention:
    # The quadratic kernel, which compiles soonest; the tiled one is asked for where tiles matter.
    given = {"shared": 3, "top_k": 2, "implementation": "reference"} | options
    return MixtureOfHeadsAttention(WIDTH, HEADS, **given, rngs=nnx.Rngs(0))


def inputs(length: int = LENGTH) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, length, WIDTH))


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def gates_by_formula(shared: np.ndarray, routed: np.ndarray, kinds: np.ndarray | None, k: int, rescale: bool):
    """Of one token."""
    kept = np.argsort(-routed, kind="stable")[:k]
    chances = softmax(routed) if len(routed) else routed
    of_shared, of_routed = softmax(shared) if len(shared) else shared, np.zeros(len(routed))
    if k:
        of_routed[kept] = chances[kept] / (chances[kept].sum() / k if rescale else 1)
    alpha = [1.0, 1.0] if kinds is None else softmax(kinds) * (2 if rescale else 1)
    return np.concatenate([of_shared * (len(shared) if rescale else 1) * alpha[0], of_routed * alpha[1]])


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("shared", "routed", "k"), [(3, 5, 2), (3, 5, 5), (1, 7, 3), (0, 8, 4), (8, 0, 0), (2, 6, 0)])
def test_gates_are_the_formulas(shared: int, routed: int, k: int, rescale: bool) -> None:
    rng = np.random.default_rng(shared + k)
    logits = [rng.normal(size=(2, 6, n)) for n in (shared, routed, 2)]
    if not shared or not k:
        logits[2] = None
    arrays = [None if each is None else jnp.asarray(each, jnp.float32) for each in logits]
    found = learned_routing(*arrays, k, rescale=rescale)
    for token in np.ndindex(2, 6):
        want = gates_by_formula(*(None if each is None else each[token] for each in logits), k, rescale)
        np.testing.assert_allclose(found.gates[token], want, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(found.active[token], (np.arange(8) < shared) | (want > 0))
    if rescale:
        alpha = np.ones((2, 6, 2)) if logits[2] is None else 2 * np.asarray(jax.nn.softmax(arrays[2]))
        np.testing.assert_allclose(found.gates.sum(-1), shared * alpha[..., 0] + k * alpha[..., 1], rtol=1e-5)


def test_query_norms_choose_and_their_softmax_has_the_gradient() -> None:
    rng = np.random.default_rng(0)
    query, pull = rng.normal(size=(5, HEADS, DIM)), rng.normal(size=(5, HEADS))

    def chances(query: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(query[:, 3:], axis=-1)
        return np.stack([softmax(row / row.std(ddof=1)) for row in norms])

    found = query_norm_routing(jnp.asarray(query, jnp.float32), 3, 2)
    order = np.argsort(-np.linalg.norm(query[:, 3:], axis=-1))
    want = np.ones((5, HEADS))
    np.put_along_axis(want[:, 3:], order[:, 2:], 0, -1)
    np.testing.assert_allclose(found.gates, want, atol=1e-6)
    np.testing.assert_array_equal(found.chosen, want[:, 3:] > 0)
    np.testing.assert_allclose(found.probabilities, chances(query), rtol=1e-5)
    slope = jax.grad(lambda q: (query_norm_routing(q, 3, 2).gates * pull).sum())(jnp.asarray(query, jnp.float32))
    direction = rng.normal(size=query.shape)
    kept = pull[:, 3:] * (want[:, 3:] > 0)
    ahead, behind = ((chances(query + step * direction) * kept).sum() for step in (1e-6, -1e-6))
    np.testing.assert_allclose((slope * direction).sum(), (ahead - behind) / 2e-6, rtol=1e-3)
    np.testing.assert_array_equal(slope[:, :3], 0)
    assert (np.abs(slope[:, 3:]).max(axis=(1, 2)) > 1e-4).all()


def test_queries_of_zero_have_finite_gradients() -> None:
    slope = jax.grad(lambda q: query_norm_routing(q, 1, 1).gates[..., 1].sum())(jnp.zeros((2, 4, DIM)))
    assert np.isfinite(slope).all()


def test_balance() -> None:
    """Even probabilities cost the number kept, the same heads always the number of heads; use has no gradient."""

    @jax.jit
    def balance(logits: jax.Array) -> jax.Array:
        return learned_routing(logits[..., :0], logits, None, 2).balance()

    logits = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    np.testing.assert_allclose(balance(1e-6 * logits), 2, rtol=1e-4)
    two = np.where(np.arange(5) < 2, 30, 0).astype(np.float32)
    np.testing.assert_allclose(balance(np.broadcast_to(two, logits.shape)), 5, rtol=1e-5)
    slope = jax.jit(jax.grad(balance))(logits)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kept = logits >= np.sort(logits)[..., -2:-1]
    pull = 5 * kept.mean((0, 1)) / 21
    np.testing.assert_allclose(slope, chances * (pull - (chances * pull).sum(-1, keepdims=True)), atol=1e-6)
    assert learned_routing(jnp.zeros((3, 7, 4)), jnp.zeros((3, 7, 0)), None, 0).balance() == 0


@nnx.jit
def run(model: nnx.Module, features: jax.Array) -> jax.Array:
    return model(features)


@nnx.jit
def output_and_slopes(model: nnx.Module, features: jax.Array) -> tuple[jax.Array, nnx.State, jax.Array]:
    def weighted(model: nnx.Module, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = model(features)
        return (output * jnp.cos(jnp.arange(output.size).reshape(output.shape))).sum(), output

    (_, output), slopes = nnx.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(model, features)
    return output, *slopes


def test_with_all_heads_kept_it_starts_as_multi_head_attention() -> None:
    attention = CausalSelfAttention(WIDTH, HEADS, kv_heads=4, implementation="reference", rngs=nnx.Rngs(2))
    made = MixtureOfHeadsAttention.from_multi_head(attention, shared=3, top_k=5, router="learned")
    want, slopes, back = output_and_slopes(attention, inputs())
    found, mixed, mixed_back = output_and_slopes(made, inputs())
    np.testing.assert_allclose(found, want, atol=1e-6)
    np.testing.assert_allclose(mixed_back, back, atol=1e-4)
    for name in ("query", "key", "value", "output"):
        ours, theirs = mixed["attention"][name]["kernel"][...], slopes[name]["kernel"][...]
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(mixed["router"]["kernel"][...]).max() > 1e-3
    by_norm = MixtureOfHeadsAttention.from_multi_head(attention, shared=3, top_k=5)
    np.testing.assert_allclose(run(by_norm, inputs()), want, atol=1e-6)


def test_patches_read_all_others_and_their_order_does_not_matter() -> None:
    """Without causality and positions: full attention where all heads are kept, and what is shuffled stays shuffled."""
    full = FullAttention(WIDTH, HEADS, implementation="reference", rngs=nnx.Rngs(2))
    made = layer(top_k=5, base=None, causal=False)
    for name in ("query", "key", "value", "output"):
        setattr(made.attention, name, getattr(full, name))
    made.router.kernel[...] = jnp.zeros_like(made.router.kernel[...])
    np.testing.assert_allclose(run(made, inputs()), run(full, inputs()), atol=1e-6)
    some = layer(base=None, causal=False)
    order = np.random.default_rng(0).permutation(LENGTH)
    np.testing.assert_allclose(run(some, inputs()[:, order]), run(some, inputs())[:, order], atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_window_of_the_attention_that_is_converted_stays(sparse: bool) -> None:
    attention = CausalSelfAttention(WIDTH, HEADS, window=4, implementation="reference", rngs=nnx.Rngs(2))
    made = MixtureOfHeadsAttention.from_multi_head(attention, shared=3, top_k=5)
    made.set_attributes(sparse=sparse)
    np.testing.assert_allclose(run(made, inputs()), run(attention, inputs()), atol=1e-6)


def test_a_head_that_a_token_does_not_run_has_no_gradient_from_it() -> None:
    model = layer()
    graph, parameters, others = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def slopes(token: jax.Array) -> tuple[jax.Array, jax.Array]:
        def at(parameters: nnx.State) -> jax.Array:
            return nnx.merge(graph, parameters, others, copy=True)(inputs())[1, token].sum()

        slope = jax.grad(at)(parameters)
        return slope["attention"]["output"]["kernel"][...], slope["attention"]["query"]["kernel"][...]

    query, _, _ = model.attention.project(inputs())
    active = np.asarray(model.route(inputs(), query).active[1])
    assert active.sum(-1).tolist() == [5] * LENGTH
    for token in (2, 11, 18):
        rows, columns = slopes(token)
        of_output = np.abs(rows).reshape(HEADS, DIM, WIDTH).max((1, 2))
        of_query = np.abs(columns).reshape(WIDTH, HEADS, DIM).max((0, 2))
        np.testing.assert_array_equal(of_output > 0, active[token])
        np.testing.assert_array_equal(of_query > 0, active[token])


@pytest.mark.parametrize("causal", [True, False])
def test_sparse_path_is_the_dense_one_with_all_its_gradients(causal: bool) -> None:
    model = layer(router="query_norm", kv_heads=2, causal=causal)
    dense = output_and_slopes(model, inputs())
    model.set_attributes(sparse=True)
    sparse = output_and_slopes(model, inputs())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), dense, sparse)


@pytest.mark.parametrize("causal", [True, False])
def test_heads_read_for_the_tokens_that_run_them_whoever_they_are(causal: bool) -> None:
    """Against softmax in numpy: a head of all tokens, of none, of the last, of random ones, over several tiles."""
    rng = np.random.default_rng(3)
    length = 300
    query = rng.normal(size=(1, length, 4, 8))
    key, value = rng.normal(size=(2, 1, length, 2, 8))
    active = np.zeros((1, length, 4), bool)
    active[:, :, 0], active[:, -1, 2], active[:, :, 3] = True, True, rng.random((1, length)) < 0.4
    heads = jax.jit(sparse_heads if causal else partial(sparse_heads, mask=None))
    found = heads(*(jnp.asarray(each, jnp.float32) for each in (query, key, value)), active)
    want = np.zeros_like(query)
    for head, token in zip(*np.nonzero(active[0].T), strict=True):
        seen = slice(token + 1 if causal else None)
        scores = key[0, seen, head // 2] @ query[0, token, head] / 8**0.5
        want[0, token, head] = softmax(scores) @ value[0, seen, head // 2]
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_future_is_not_seen(sparse: bool) -> None:
    model = layer()
    model.set_attributes(sparse=sparse)
    before, after = run(model, inputs()), run(model, inputs().at[:, 12:].set(3.0))
    np.testing.assert_allclose(before[:, :12], after[:, :12], atol=1e-6)
    assert np.abs(before - after)[:, 12:].max() > 1e-2


def test_its_balance_reaches_the_training_loop_over_seeds() -> None:
    """With its gradient, and from every layer's state: a decoder that is asked for uneven use learns that."""

    def attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> MixtureOfHeadsAttention:
        return MixtureOfHeadsAttention(width, heads, shared=0, top_k=1, implementation="reference", rngs=rngs)

    def loss(model: Decoder, tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        model(tokens)
        found = auxiliary_losses(model)
        return -found["balance"], found

    config = DecoderConfig(vocabulary=11, width=16, layers=1, heads=4, hidden=16, attention=attention)
    data = Generated(lambda key: jax.random.randint(key, (8, 12), 0, 11))
    optimiser = optax.sgd(0.5)
    graph, state = create_state(lambda rngs: Decoder(config, rngs=rngs), optimiser, jax.random.key(0), 2)
    state, trace = build_dispatch(graph, loss, optimiser, data, 2)(state, None, 60)
    assert trace.finite.all()
    balance = np.asarray(trace.metrics["balance"])
    assert balance.shape == (60, 2)
    assert (balance[0] < 1.5).all()
    assert (balance[-1] > 2.5).all()
    kept = nnx.to_flat_state(nnx.filter_state(state.others, AuxiliaryLoss))
    np.testing.assert_allclose(np.mean([loss[...] for _, loss in kept], axis=0), balance[-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": 9}, "shared must be from 0 to the 8 heads; got 9"),
        ({"shared": 4, "top_k": 5}, "top_k must be from 0 to the 4 routed heads, or 1 if none is shared; got 5"),
        ({"shared": 0, "top_k": 0}, "top_k must be from 0 to the 8 routed heads, or 1 if none is shared; got 0"),
        ({"router": "query_norm", "rescale": False}, "router 'query_norm' needs at least 2 routed heads"),
        ({"router": "query_norm", "shared": 7, "top_k": 1}, "router 'query_norm' needs at least 2 routed heads"),
    ],
)
def test_wrong_numbers_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**options)
    with pytest.raises(ValueError, match="shared must leave at least 2 of the 4 heads to be routed; got 3"):
        query_norm_routing(jnp.ones((1, 4, 2)), 3, 1)
