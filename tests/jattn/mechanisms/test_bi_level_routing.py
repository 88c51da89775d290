"""Bi-level routing attention: against dense attention in float64 with the unlisted regions masked away."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.mechanisms import (
    BiLevelRoutingAttention,
    attention_over_regions,
    cut_regions,
    route,
    uncut_regions,
)

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
WIDTH, HEADS = 8, 2
PATHS: list[dict[str, Any]] = [
    {"implementation": "xla"},
    {"implementation": "reference"},
    {"implementation": "reference", "access": "gathered"},
    {"implementation": "reference", "access": "masked"},
]


def maps(height: int, width: int, count: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(height).normal(size=(count, 2, height, width, WIDTH)))


def some_lists(regions: int, top_k: int) -> jax.Array:
    """Different for every image and region, in no order."""
    rng = np.random.default_rng(regions * top_k)
    return jnp.asarray([[rng.permutation(regions**2)[:top_k] for _ in range(regions**2)] for _ in range(2)])


quickly = partial(jax.jit, compiler_options=QUICKLY)
attend = quickly(attention_over_regions, static_argnames=("heads", "scale", "mask_padding", "access", "implementation"))
routed = quickly(route, static_argnames=("regions", "top_k", "soft"))


def region_of(height: int, width: int, regions: int) -> np.ndarray:
    """Of every token, row by row: from its place in the image."""
    tall, wide = -(-height // regions), -(-width // regions)
    return np.array([i // tall * regions + j // wide for i in range(height) for j in range(width)])


def dense(query: Any, key: Any, value: Any, gates: Any, lists: Any, scale: float) -> jax.Array:
    """Every token against every other; the gate of a pair is that of its regions, -inf where unlisted."""
    batch, height, width, _ = query.shape
    regions = round(lists.shape[-2] ** 0.5)
    own = region_of(height, width, regions)
    table = jnp.full((batch, regions**2, regions**2), -jnp.inf)
    table = table.at[jnp.arange(batch)[:, None, None], jnp.arange(regions**2)[None, :, None], lists].set(gates)
    query, key, value = (each.reshape(batch, height * width, HEADS, -1) for each in (query, key, value))
    scores = scale * jnp.einsum("bihc,bjhc->bhij", query, key) + table[:, None, own[:, None], own[None]]
    return jnp.einsum("bhij,bjhc->bihc", jax.nn.softmax(scores), value).reshape(batch, height, width, -1)


def test_cutting_and_putting_together_is_the_identity() -> None:
    for regions, tall, wide, channels in ((2, 1, 3, 2), (3, 2, 2, 1)):
        shape = (2, regions * tall, regions * wide, channels)
        image = jnp.arange(np.prod(shape)).reshape(shape)
        cut = cut_regions(image, regions)
        assert cut.shape == (2, regions**2, tall * wide, channels)
        np.testing.assert_array_equal(uncut_regions(cut, *shape[1:3]), image)
        own, tokens = region_of(*shape[1:3], regions), image[0].reshape(-1, channels)
        for region in range(regions**2):
            np.testing.assert_array_equal(cut[0, region], tokens[own == region])


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("sizes", [(8, 4), (5, 6)], ids=str)
def test_values_and_gradients_are_those_of_dense_attention_with_a_mask(sizes: tuple[int, int], path: dict) -> None:
    """Divisible or not: 5 x 6 tokens in 4 x 4 regions of 2 x 2 leave regions half empty and empty."""
    with jax.enable_x64(True):
        lists = jnp.sort(some_lists(4, 5), axis=-1)[..., ::-1].at[..., -1].set(0)  # in every list someone who is there
        gates = jnp.asarray(np.random.default_rng(3).normal(size=lists.shape))
        along = maps(*sizes, count=4)

        def summed(attend: Any, query: Any, key: Any, value: Any, gates: Any) -> Any:
            output = attend(query, key, value, gates)
            return (output * along[3]).sum(), output

        ours = lambda q, k, v, g: attention_over_regions(  # noqa: E731
            q, k, v, lists, heads=HEADS, log_gates=g, scale=0.7, **path
        )
        truth = lambda q, k, v, g: dense(q, k, v, g, lists, 0.7)  # noqa: E731
        found, expected = (
            quickly(jax.grad(partial(summed, each), (0, 1, 2, 3), has_aux=True))(*along[:3], gates)
            for each in (ours, truth)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found, expected)


@partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def run_parts(graph: Any, state: Any, *arguments: Any) -> Any:
    return nnx.merge(graph, state)(*arguments)


def run(module: BiLevelRoutingAttention, *arguments: Any) -> Any:
    """Compiled: an operation at a time takes far longer to start."""
    return run_parts(*nnx.split(module), *arguments)


def layer(**options: Any) -> BiLevelRoutingAttention:
    """With weights large enough for routes to differ."""
    sizes = {"regions": 4, "top_k": 3, "access": "gathered", "implementation": "reference"} | options
    module = nnx.eval_shape(lambda: BiLevelRoutingAttention(WIDTH, HEADS, **sizes, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for part, size in ((module.inner, 0.6), (module.local, 0.2), (module.outer, 0.3)):
        if part is None:
            continue
        part.kernel = nnx.Param(jnp.float32(size * rng.normal(size=part.kernel.shape)))
        part.bias = nnx.Param(jnp.float32(size * rng.normal(size=part.bias.shape)))
    return module


def by_formula(module: BiLevelRoutingAttention, features: Any, lists: Any, scale: float) -> np.ndarray:
    """From the weights, in numpy float64."""
    x = np.asarray(features, np.float64)
    query, key, value = np.split(x @ np.float64(module.inner.kernel[...]) + np.float64(module.inner.bias[...]), 3, -1)
    batch, height, width, channels = x.shape
    own = region_of(height, width, module.regions)
    listed = (np.asarray(lists)[:, own][..., None] == own).any(axis=2)
    read = np.zeros((batch, height * width, channels))
    flat = [each.reshape(batch, height * width, channels) for each in (query, key, value)]
    for head in np.split(np.arange(channels), module.heads):
        scores = np.where(listed, scale * flat[0][..., head] @ flat[1][..., head].swapaxes(1, 2), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        read[..., head] = weights @ flat[2][..., head] / weights.sum(axis=-1, keepdims=True)
    side = module.local.kernel_size[0] // 2
    framed = np.pad(value, ((0, 0), (side, side), (side, side), (0, 0)))
    taps = np.float64(module.local.kernel[...])[:, :, 0]
    local = sum(
        framed[:, i : i + height, j : j + width] * taps[i, j] for i, j in np.ndindex(2 * side + 1, 2 * side + 1)
    ) + np.float64(module.local.bias[...])
    return (read.reshape(x.shape) + local) @ np.float64(module.outer.kernel[...]) + np.float64(module.outer.bias[...])


def features(height: int = 8, width: int = 8) -> jax.Array:
    return jnp.float32(maps(height, width, 1)[0])


def test_layer_is_the_formula() -> None:
    """On 6 x 7 tokens, whose regions are of 2 x 2 tokens or fewer."""
    module = layer(scale=WIDTH**-0.5)
    output, routing = run(module, features(6, 7))
    np.testing.assert_allclose(output, by_formula(module, features(6, 7), routing.lists, WIDTH**-0.5), atol=2e-5)
    assert len({tuple(sorted(row)) for row in np.asarray(routing.lists).reshape(-1, 3).tolist()}) > 4


def test_routing_is_by_means_over_all_channels_and_a_region_need_not_read_itself() -> None:
    query, key = maps(7, 10, count=2)
    routing = routed(query, key, regions=3, top_k=2)
    own = region_of(7, 10, 3)
    flat = np.asarray(query).reshape(2, 70, WIDTH), np.asarray(key).reshape(2, 70, WIDTH)
    means = [np.stack([each[:, own == region].mean(axis=1) for region in range(9)], axis=1) for each in flat]
    affinity = means[0] @ means[1].swapaxes(1, 2) / WIDTH**0.5
    np.testing.assert_allclose(routing.affinity, affinity, atol=1e-5)
    np.testing.assert_array_equal(routing.lists, np.argsort(-affinity, axis=-1)[..., :2])
    assert not (np.asarray(routing.lists) == np.arange(9)[None, :, None]).any(axis=-1).all()


def test_regions_without_tokens_come_last() -> None:
    """Of 5 x 5 tokens in 4 x 4 regions of 2 x 2, the last row and column of regions have none."""
    query, key = maps(5, 5, count=2)
    lists = routed(query, -jnp.abs(key) * jnp.sign(query.mean()), regions=4, top_k=9).lists
    assert set(np.asarray(lists).ravel().tolist()) == {i * 4 + j for i in range(3) for j in range(3)}


def test_all_regions_in_any_order_are_full_attention() -> None:
    full = layer(regions=1, top_k=1)
    expected, _ = run(full, features())
    every = layer(top_k=16)
    np.testing.assert_allclose(run(every, features())[0], expected, atol=1e-5)
    np.testing.assert_allclose(run(every, features(), some_lists(4, 16))[0], expected, atol=1e-5)
    np.testing.assert_allclose(expected, by_formula(full, features(), np.zeros((2, 1, 1)), 2**-1.0), atol=2e-5)


def test_own_region_alone_is_windowed_attention() -> None:
    """Each window as an image of its own; without LCE, which sees across windows."""
    module = layer(top_k=1, kernel=None)
    output, routing = run(module, features(), jnp.arange(16)[None, :, None])
    windows = cut_regions(features(), 4).reshape(32, 2, 2, WIDTH)
    alone = layer(regions=1, top_k=1, kernel=None)
    np.testing.assert_allclose(cut_regions(output, 4).reshape(32, 2, 2, WIDTH), run(alone, windows)[0], atol=1e-5)
    assert routing.lists.shape == (2, 16, 1)


def test_order_within_lists_and_size_of_affinities_do_not_matter() -> None:
    query, key, value = maps(8, 8)
    lists = some_lists(4, 5)
    for path in PATHS[1:]:
        forwards, backwards = (
            attend(query, key, value, each, heads=HEADS, **path) for each in (lists, lists[..., ::-1])
        )
        np.testing.assert_allclose(forwards, backwards, atol=1e-6)
    first, scaled = (routed(a * query, b * key, regions=4, top_k=5) for a, b in ((1, 1), (7, 3)))
    np.testing.assert_array_equal(first.lists, scaled.lists)
    np.testing.assert_allclose(scaled.affinity, 21 * first.affinity, rtol=1e-4, atol=1e-5)


def test_padding_is_read_only_where_asked_for() -> None:
    """A region that reads zeros beside its own tokens: weights e^0 for each, values 0."""
    query, key, value = maps(3, 3)
    lists = jnp.arange(4)[None, :, None]
    masked, read = (
        attend(query, key, value, lists, heads=HEADS, mask_padding=mask, **path)
        for mask, path in zip((True, False), PATHS[1::2], strict=True)
    )
    np.testing.assert_allclose(masked[:, 2, 2], value[:, 2, 2], atol=1e-6)
    scores = (query * key)[:, 2, 2].reshape(2, HEADS, -1).sum(-1) * (WIDTH // HEADS) ** -0.5
    share = np.exp(scores) / (np.exp(scores) + 3)
    np.testing.assert_allclose(read[:, 2, 2], value[:, 2, 2] * np.repeat(share, WIDTH // HEADS, axis=-1), atol=1e-6)
    np.testing.assert_allclose(masked[:, :2, :2], read[:, :2, :2], atol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_gradients_reach_the_routing_in_soft_mode_alone(soft: bool) -> None:
    """What is routed by is moved, and what is attended to stays as it was."""
    query, key, value = maps(8, 8)

    def loss(query_routed_by: jax.Array, key_routed_by: jax.Array) -> jax.Array:
        routing = route(query_routed_by, key_routed_by, regions=4, top_k=3, soft=soft)
        gates = jnp.take_along_axis(*routing, axis=-1)
        output = attention_over_regions(
            query,
            key,
            value,
            routing.lists,
            heads=HEADS,
            log_gates=gates,
            implementation="reference",
            access="gathered",
        )
        return (output**2).sum() + routing.affinity.sum()

    slopes = quickly(jax.grad(loss, (0, 1)))(query, key)
    for slope in slopes:
        assert (slope != 0).all() if soft else (slope == 0).all()


def test_soft_layer_gates_by_the_softmax_of_affinities() -> None:
    module = layer(soft=True)

    def by_parts(state: Any) -> jax.Array:
        module = nnx.merge(graph, state)
        query, key, value = jnp.split(module.inner(features()), 3, axis=-1)
        routing = route(query, key, regions=4, top_k=3, soft=True)
        log_gates = jnp.take_along_axis(jax.nn.log_softmax(routing.affinity), routing.lists, axis=-1)
        read = attention_over_regions(
            query, key, value, routing.lists, heads=HEADS, log_gates=log_gates, implementation="reference"
        )
        return module.outer(read + module.local(value))

    graph, state = nnx.split(module)
    expected = quickly(by_parts)(state)
    np.testing.assert_allclose(run(module, features())[0], expected, atol=2e-5)
    assert np.abs(run(layer(), features())[0] - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": 2, "top_k": 5}, "top_k must be from 1 to the 4 regions; got 5"),
        ({"heads": 3}, "heads must divide the width of 8; got 3"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict, message: str) -> None:
    options = {"heads": 2, "regions": 2, "top_k": 1} | options
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(WIDTH, **options, rngs=nnx.Rngs(0))


def test_shapes_that_do_not_fit_are_named() -> None:
    query, key, value = maps(4, 4)
    with pytest.raises(ValueError, match="regions must divide height and width, 4 x 4; got 3"):
        cut_regions(query, 3)
    with pytest.raises(ValueError, match="cut must be square regions of 4 x 4 tokens; got 3 of 2"):
        uncut_regions(jnp.zeros((3, 2, 1)), 4, 4)
    with pytest.raises(ValueError, match="heads must divide the 8 channels; got 3"):
        attention_over_regions(query, key, value, jnp.zeros((1, 4, 1), int), heads=3)
    with pytest.raises(ValueError, match="lists must be of a square number of regions; got 3"):
        attention_over_regions(query, key, value, jnp.zeros((1, 3, 1), int), heads=2)
