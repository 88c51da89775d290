"""Routing attention: against masks that say who is in a group with whom, what leaks from the future, and decoding."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.layers.auxiliary import AuxiliaryLoss, auxiliary_losses
from jattn.layers.norms import layer_norm
from jattn.mechanisms import (
    LocalAttention,
    RoutingAttention,
    causal_routing_attention,
    local_attention,
    routing_attention,
    routing_lists,
)
from jattn.mechanisms.routing import RoutingStatistic
from jattn.models.decoder import Decoder, DecoderConfig

BATCH, LENGTH, HEADS, DIM, CLUSTERS = 2, 20, 2, 4, 3
WIDTH = HEADS * DIM


def operands(dtype: type = np.float64) -> tuple[jax.Array, jax.Array, jax.Array]:
    drawn = np.random.default_rng(0).normal(size=(3, BATCH, LENGTH, HEADS, DIM))
    return tuple(jnp.asarray(each, dtype) for each in drawn)


def some_lists(window: int, seed: int) -> np.ndarray:
    """Random tokens, each at most once in a list, ascending."""
    noise = np.random.default_rng(seed).random((BATCH, HEADS, CLUSTERS, LENGTH))
    return np.sort(noise.argsort(-1)[..., :window], -1)


def listed(lists: np.ndarray) -> np.ndarray:
    """Which tokens a list has: (batch, heads, clusters, length)."""
    return (lists[..., None] == np.arange(LENGTH)).any(-2)


def without_self(allowed: np.ndarray) -> np.ndarray:
    """Rows that have another key lose their own."""
    own = np.eye(allowed.shape[-1], dtype=bool)
    return np.where((allowed & ~own).any(-1, keepdims=True), allowed & ~own, allowed)


def by_masks(query: jax.Array, key: jax.Array, value: jax.Array, allowed: np.ndarray, members: np.ndarray) -> jax.Array:
    """A softmax for each cluster over all pairs, of which `allowed` are kept; then the mean over a token's clusters."""
    scores = jnp.einsum("bnhd,bmhd->bhnm", query, key)[:, :, None] * DIM**-0.5
    weights = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    read = jnp.einsum("bhcnm,bmhd->bhcnd", weights / jnp.where(total == 0, 1, total), value)
    return jnp.moveaxis(read.sum(2) / np.maximum(members.sum(2), 1)[..., None], 1, 2)


def assert_same_with_gradients(ours: Callable[..., jax.Array], reference: Callable[..., jax.Array]) -> None:
    """Outputs, and the gradients of a random weighting of them with respect to query, key and value, in float64."""
    with jax.enable_x64(True):
        given = operands()
        cotangent = np.random.default_rng(1).normal(size=given[0].shape)

        @jax.jit  # one program: compiling takes nearly all of the time
        def both(*given: jax.Array) -> list[tuple[jax.Array, tuple[jax.Array, ...]]]:
            found = (jax.vjp(function, *given) for function in (ours, reference))
            return [(output, back(cotangent)) for output, back in found]

        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), *both(*given))


LATER = np.tril(np.ones((LENGTH, LENGTH), bool))


@pytest.mark.parametrize(
    ("key_window", "options"),
    [
        (None, {"implementation": "reference"}),
        (None, {"exclude_self": True}),
        (None, {"exclude_self": True, "causal": False, "implementation": "reference"}),
        (5, {}),
    ],
)
def test_is_a_softmax_within_each_cluster(key_window: int | None, options: dict) -> None:
    lists, key_lists = some_lists(8, 0), None if key_window is None else some_lists(key_window, 1)
    members = listed(lists)
    allowed = members[..., None] & (members if key_lists is None else listed(key_lists))[..., None, :]
    allowed = allowed & LATER if options.get("causal", True) else allowed
    allowed = without_self(allowed) if options.get("exclude_self") else allowed
    # There are tokens in no cluster and in several, and with separate lists rows without a key.
    assert set(np.unique(members.sum(2))) >= {0, 1, 2}
    assert key_lists is None or (members & ~allowed.any(-1)).any()
    assert_same_with_gradients(
        lambda q, k, v: routing_attention(q, k, v, *as_indices(lists, key_lists), **options),
        lambda q, k, v: by_masks(q, k, v, allowed, members),
    )


def as_indices(*arrays: np.ndarray | None) -> list[jax.Array | None]:
    return [each if each is None else jnp.asarray(each, jnp.int32) for each in arrays]


@pytest.mark.parametrize(
    ("window", "options"),
    [(3, {}), (3, {"exclude_self": True}), (LENGTH, {"exclude_self": True, "implementation": "reference"})],
)
def test_causal_form_reads_the_last_members(window: int, options: dict) -> None:
    clusters = np.random.default_rng(2).integers(0, CLUSTERS, (BATCH, HEADS, LENGTH))
    clusters[:, :, 7] = CLUSTERS  # alone in its cluster
    allowed = np.zeros((BATCH, HEADS, 1, LENGTH, LENGTH), bool)
    for b, h, i in np.ndindex(BATCH, HEADS, LENGTH):
        others = [j for j in range(i) if clusters[b, h, j] == clusters[b, h, i]]
        read = others if "exclude_self" in options else [*others, i]
        allowed[b, h, 0, i, read[-window:] or [i]] = True
    assert_same_with_gradients(
        lambda q, k, v: causal_routing_attention(q, k, v, jnp.asarray(clusters), window, **options),
        lambda q, k, v: by_masks(q, k, v, allowed, np.ones((BATCH, HEADS, 1, LENGTH))),
    )


def test_local_attention_is_its_mask() -> None:
    place = np.arange(LENGTH)
    allowed = LATER & (place >= place[:, None] // 6 * 6 - 4)
    assert_same_with_gradients(
        lambda q, k, v: local_attention(q, k, v, 6, 4),
        lambda q, k, v: by_masks(q, k, v, allowed[None, None, None], np.ones((1, 1, 1, LENGTH))),
    )
    module = LocalAttention(WIDTH, HEADS, block=6, look_back=4, implementation="reference", rngs=nnx.Rngs(0))
    # Token 17 reads tokens 8 to 17.
    changed = outputs(module, text().at[:, :8].set(9.0)) - outputs(module, text())
    np.testing.assert_allclose(changed[:, 12:], 0, atol=1e-6)
    assert (np.abs(changed[:, 8:12]).max(-1) > 1e-3).all()


def test_one_cluster_of_all_tokens_is_causal_attention() -> None:
    query, _, value = operands(np.float32)
    vectors = layer_norm(query)
    lists = routing_lists(vectors, jnp.ones((HEADS, 1, DIM)), LENGTH)
    q, v = np.asarray(query, np.float64), np.asarray(value, np.float64)
    q = q - q.mean(-1, keepdims=True)
    q = q * DIM**0.5 / np.linalg.norm(q, axis=-1, keepdims=True)
    weights = np.where(LATER, np.exp(np.einsum("bnhd,bmhd->bhnm", q, q) * DIM**-0.5), 0)
    want = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)
    attend = jax.jit(lambda: [routing_attention(vectors, vectors, value, lists, more=more) for more in (0.0, 0.01)])
    plain, with_hundredth = attend()
    np.testing.assert_allclose(plain, want, atol=1e-5)
    np.testing.assert_allclose(with_hundredth, want / 1.01, atol=1e-5)


def test_lists_have_the_largest_affinities() -> None:
    vectors, centroids, _ = operands(np.float32)
    centroids = centroids[0, :CLUSTERS].swapaxes(0, 1)
    vectors = vectors.at[:, 11].set(vectors[:, 3])  # equal tokens: the earlier goes first
    lists = np.asarray(routing_lists(vectors, centroids, 6))
    affinity = np.einsum("bnhd,hcd->bhcn", *(np.asarray(each, np.float64) for each in (vectors, centroids)))
    affinity = affinity - 1e-9 * np.arange(LENGTH)
    np.testing.assert_array_equal(lists, np.sort(np.argsort(-affinity, axis=-1)[..., :6], axis=-1))
    assert ((lists == 3).any(-1) >= (lists == 11).any(-1)).all()
    order = [2, 0, 1]
    np.testing.assert_array_equal(routing_lists(vectors, centroids[:, jnp.array(order)], 6), lists[:, :, order])


def test_order_of_centroids_and_within_key_lists_does_not_count() -> None:
    given, lists = operands(np.float32), jnp.asarray(some_lists(8, 0))
    attend = jax.jit(partial(routing_attention, implementation="reference"))
    want = attend(*given, lists, lists)
    np.testing.assert_allclose(attend(*given, lists[:, :, ::-1], lists[:, :, ::-1]), want, atol=1e-6)
    np.testing.assert_allclose(attend(*given, lists, lists[..., ::-1]), want, atol=1e-6)
    np.testing.assert_allclose(attend(*given, lists), want, atol=1e-6)  # shared lists need no positions


def test_rows_without_keys_give_zero() -> None:
    """Queries before all keys, and tokens in no list, whose values are not numbers."""
    query, key, value = operands(np.float32)
    lists = jnp.broadcast_to(jnp.array([0, 1, 8, 9]), (BATCH, HEADS, 1, 4))
    key_lists = jnp.broadcast_to(jnp.array([5, 9, 12]), (BATCH, HEADS, 1, 3))
    value = value.at[:, 15:].set(jnp.nan)

    def run(query, key, value):
        output = routing_attention(query, key, value, lists, key_lists)
        return (output**2).sum(), output

    slopes, output = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(query, key, value)
    nothing = np.setdiff1d(np.arange(LENGTH), [8, 9])
    np.testing.assert_array_equal(output[:, nothing], 0)
    np.testing.assert_array_equal(slopes[0][:, nothing], 0)
    assert (np.abs(output[:, [8, 9]]).max(-1) > 0).all()
    assert all(np.isfinite(each).all() for each in slopes)


def test_vectors_lie_on_the_sphere() -> None:
    drawn = jax.random.normal(jax.random.key(0), (500, 64)) * jnp.geomspace(0.1, 100, 500)[:, None] + 3
    np.testing.assert_allclose(np.linalg.norm(layer_norm(drawn), axis=-1), 8, rtol=1e-5)
    np.testing.assert_array_equal(layer_norm(jnp.full((2, 8), 3.0)), 0)
    assert np.isfinite(jax.jit(jax.grad(lambda x: layer_norm(x).sum()))(jnp.full(8, 3.0))).all()


# What leaks from the future.

SINCE = 12


def other_future(array: jax.Array, seed: int) -> jax.Array:
    """From token SINCE on, other numbers."""
    noise = np.random.default_rng(100 + seed).normal(size=array[:, SINCE:].shape)
    return array.at[:, SINCE:].set(jnp.asarray(3 * noise, array.dtype))


def test_no_value_leaks_given_the_lists() -> None:
    lists = jnp.asarray(some_lists(8, 0))
    attend = jax.jit(lambda *given: routing_attention(*given, lists))
    before, after = (
        attend(*given) for given in (operands(np.float32), [other_future(x, 0) for x in operands(np.float32)])
    )
    np.testing.assert_array_equal(before[:, :SINCE], after[:, :SINCE])
    assert (before[:, SINCE:] != after[:, SINCE:]).any()


def test_lists_tell_of_the_future() -> None:
    """A list of two: the first two tokens are in it unless the third is nearer to the centroid than the first."""

    @jax.jit
    def read(last: jax.Array) -> tuple[jax.Array, jax.Array]:
        vectors = jnp.array([1.0, 2.0, 0.0]).at[2].set(last)[None, :, None, None] * jnp.ones(DIM)
        lists = routing_lists(vectors, jnp.ones((1, 1, DIM)), 2)
        return lists[0, 0, 0], routing_attention(vectors, vectors, jnp.ones((1, 3, 1, 1)), lists)[0, 0, 0, 0]

    for last, listed, output in ((0.0, [0, 1], 1), (3.0, [1, 2], 0)):
        lists, of_first = read(jnp.float32(last))
        np.testing.assert_array_equal(lists, listed)
        assert of_first == output


def layer(**options) -> RoutingAttention:
    sizes = {"local_heads": 1, "clusters": CLUSTERS, "window": 4, "block": 6, "look_back": 4}
    options = sizes | {"implementation": "reference"} | options  # which is quick to compile
    return RoutingAttention(WIDTH, options.pop("heads", HEADS), rngs=nnx.Rngs(0), **options)


def text(seed: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (BATCH, LENGTH, WIDTH))


@nnx.jit
def outputs(layer: nnx.Module, features: jax.Array) -> jax.Array:
    return layer(features)


@nnx.jit
def projected(layer: RoutingAttention, features: jax.Array) -> tuple[jax.Array, ...]:
    return layer.project(features)


def test_causality_of_the_layer() -> None:
    """The same futures change the past of the published form, and that of the causal form by rounding alone.

    Tokens are summed in the order of clusters, so that what comes later moves where an earlier one stands in a sum.
    """
    published, causal = layer(), layer(causal_routing=True, exclude_self=True)
    leaks = []
    for seed in range(10):
        changed = other_future(text(), seed)
        difference = outputs(causal, changed) - outputs(causal, text())
        np.testing.assert_allclose(difference[:, :SINCE], 0, atol=1e-6)
        assert (np.abs(difference[:, SINCE:]).max(-1) > 1e-4).all()
        leaks.append(np.abs((outputs(published, changed) - outputs(published, text()))[:, :SINCE]).max())
    assert np.median(leaks) > 1e-2
    slope = nnx.jit(nnx.grad(lambda layer, features: jnp.sin(layer(features)[:, :SINCE]).sum(), argnums=1))(
        causal, text()
    )
    np.testing.assert_array_equal(slope[:, SINCE:], 0)
    assert (np.abs(slope[:, :SINCE]).max(-1) > 1e-4).all()


@pytest.mark.parametrize(("options", "prompt"), [({}, 13), ({"exclude_self": True, "local_heads": 0}, 0)])
def test_decoding_is_one_pass(options: dict, prompt: int) -> None:
    module = layer(causal_routing=True, **options)
    head, state = nnx.jit(lambda module, features: module.start_decoding(features))(module, text()[:, :prompt])
    step = nnx.jit(lambda module, features, state: module.decode(features, state))
    rows = [head]
    for place in range(prompt, LENGTH):
        row, state = step(module, text()[:, place], state)
        rows.append(row[:, None])
    np.testing.assert_allclose(jnp.concatenate(rows, axis=1), outputs(module, text()), atol=1e-5)
    assert int(state.position) == LENGTH
    assert state.routing.keys.shape == (BATCH, HEADS - module.local_heads, CLUSTERS, 4, DIM)


# Centroids and their loss.


def test_centroids_follow_only_when_asked() -> None:
    module = layer(decay=0.9)
    start = module.centroids
    outputs(module, text())
    jax.tree.map(np.testing.assert_array_equal, module.centroids, start)
    module.set_attributes(update_centroids=True)
    vectors = np.asarray(projected(module, text())[0][:, :, 1:]).reshape(1, -1, DIM)
    for _ in range(150):
        outputs(module, text())
    # Data that stay: averages become the means of what was assigned at the end, and no token changes sides any more.
    count, total = module.centroids
    nearest = np.asarray(module.centroids.nearest(jnp.asarray(vectors)))[0]
    assert len(set(nearest)) > 1
    for cluster in set(nearest):
        np.testing.assert_allclose(
            total[0, cluster] / count[0, cluster], vectors[0, nearest == cluster].mean(0), atol=1e-4
        )


def test_only_commitment_pulls_and_only_at_queries() -> None:
    module = layer(share_query_key=False)
    graph, state = nnx.split(module)

    @jax.jit
    def slopes(state: nnx.State) -> list[nnx.State]:
        def losses(state: nnx.State) -> tuple[jax.Array, jax.Array]:
            module = nnx.merge(graph, state)
            return (module(text()) ** 2).sum(), auxiliary_losses(module)["commitment"]

        values, back = jax.vjp(losses, state)
        return [back(tuple(jnp.eye(2, dtype=values[0].dtype)[which]))[0] for which in range(2)]

    of_output, of_commitment = slopes(state)
    for found in (of_output, of_commitment):
        np.testing.assert_array_equal(found.count[...], 0)
        np.testing.assert_array_equal(found.total[...], 0)
    for name in ("value", "output"):
        assert np.abs(of_output[name].kernel[...]).max() > 0
        np.testing.assert_array_equal(of_commitment[name].kernel[...], 0)
    for name in ("query", "key"):
        np.testing.assert_array_equal(of_commitment[name].kernel[:, :DIM], 0)  # the local head
        assert np.abs(of_commitment[name].kernel[:, DIM:]).max() > 0
    assert len(jax.tree.leaves(nnx.state(module, RoutingStatistic))) == 2
    assert len(jax.tree.leaves(nnx.state(module, AuxiliaryLoss))) == 1


def test_commitment_is_the_distance_to_the_nearest() -> None:
    module = layer(share_query_key=False)
    outputs(module, text())
    query, key, _ = projected(module, text())
    vectors = np.concatenate([each[:, :, 1].reshape(-1, DIM) for each in (query, key)])
    squared = ((vectors[:, None] - np.asarray(module.centroids.places)[0]) ** 2).sum(-1)
    np.testing.assert_allclose(module.commitment[...], squared.min(-1).mean(), rtol=1e-4)


def test_layers_of_a_decoder() -> None:
    """Local layers, and a last one with routing heads: the plain decoder, with its attention exchanged."""

    def attention(width: int, heads: int, layer: int, rngs: nnx.Rngs):
        if layer == 0:
            return LocalAttention(width, heads, block=6, look_back=4, rngs=rngs)
        return RoutingAttention(width, heads, local_heads=1, clusters=3, window=6, block=6, look_back=4, rngs=rngs)

    model = nnx.eval_shape(lambda: Decoder(DecoderConfig(11, WIDTH, 2, HEADS, 16, attention), rngs=nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    logits, losses = nnx.eval_shape(lambda model, tokens: (model(tokens), auxiliary_losses(model)), model, tokens)
    assert logits.shape == (BATCH, LENGTH, 11)
    assert list(losses) == ["commitment"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads must cut the width of 8 into even parts; got 3"),
        ({"local_heads": 2}, "local_heads must be from 0 to 1; got 2"),
        ({"clusters": 0}, "clusters must be at least 1; got 0"),
        ({"share_query_key": False, "causal_routing": True}, "share_query_key must be True"),
    ],
)
def test_what_does_not_fit_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**options)


def test_calls_that_do_not_fit_are_named() -> None:
    given, lists = operands(np.float32), jnp.asarray(some_lists(8, 0))
    with pytest.raises(ValueError, match="window must be from 1 to the length of 20; got 21"):
        routing_lists(given[0], jnp.ones((HEADS, 1, DIM)), 21)
    with pytest.raises(ValueError, match="exclude_self must be False where keys have lists of their own"):
        routing_attention(*given, lists, lists, exclude_self=True)
    with pytest.raises(ValueError, match="window must be at least 1; got 0"):
        causal_routing_attention(*given, jnp.zeros((BATCH, HEADS, LENGTH), int), 0)
    with pytest.raises(ValueError, match="causal_routing must be True for decoding"):
        layer().start_decoding(text())
