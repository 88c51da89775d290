"""The measurements on planted attention, the random clusters, and a whole run."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.routing_transformer import EXPERIMENT, claims
from experiments.routing_transformer.config import PRESETS, Config
from experiments.routing_transformer.measure import Look, divergence, recall, together, weights
from experiments.routing_transformer.model import build, loss, random_lists
from jattn.mechanisms.routing import RoutingStatistic
from jattn.runs import open_run

TINY = replace(
    PRESETS["smoke"].config, length=48, width=16, hidden=16, layers=1, routing_layers=1, clusters=4, window=12,
    block=8, look_back=8, steps=4, warm_up=1, steps_per_dispatch=2, evaluate_every=2, checkpoint_every=4,
    validation_windows=2, test_windows=2, probe_windows=1,
)  # fmt: skip


def test_divergence_of_planted_weights() -> None:
    """0 for equal weights, log 2 for disjoint ones, and the textbook's value between; tokens that read nothing out."""
    shares = np.zeros((3, 4, 6), np.float32)
    shares[:, 0, 0] = 1
    shares[:, 1, 1] = 1
    shares[:, 2, :2] = 0.5
    shares[:1, 3, 0] = 1
    given = jnp.asarray(shares)
    np.testing.assert_allclose(divergence(given, [(0, 0)]), 0, atol=1e-6)
    np.testing.assert_allclose(divergence(given, [(0, 1)]), np.log(2), rtol=1e-6)
    mixture = np.array([0.75, 0.25])
    textbook = -(mixture * np.log(mixture)).sum() - np.log(2) / 2
    np.testing.assert_allclose(divergence(given, [(0, 2)]), textbook, rtol=1e-5)
    np.testing.assert_allclose(divergence(given, [(1, 3)]), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(divergence(given, [(0, 1), (0, 0)]), np.log(2) / 2, rtol=1e-6)


def test_recall_of_planted_clusters() -> None:
    lists = np.array([[[0, 1, 2], [3, 4, 5]]])
    found = together(lists, 6)
    np.testing.assert_array_equal(found[0], np.kron(np.eye(2), np.ones((3, 3))))
    best = np.zeros((1, 6, 2), int)
    best[0, 2:] = [[0, 1], [0, 1], [3, 0], [3, 4]]
    np.testing.assert_allclose(recall(jnp.asarray(best), found), (1 + 0 + 0.5 + 1) / 4)


def test_random_clusters_are_partitions() -> None:
    lists = random_lists(0, heads=3, clusters=4, window=6, length=24)
    np.testing.assert_array_equal(np.sort(lists.reshape(3, -1)), np.tile(np.arange(24), (3, 1)))
    assert (np.diff(lists) > 0).all()
    assert (lists[0] != lists[1]).any()
    assert (random_lists(1, 3, 4, 6, 24) != lists).any()


@pytest.mark.parametrize("arm", ["local", "random", "routing"])
def test_weights_are_what_heads_read(arm: str) -> None:
    """They sum to 1, look at no later token, and applied to the values give what the layer gives."""
    model = build(TINY, arm, nnx.Rngs(0))
    attention = model.blocks[-1].attention
    attention.implementation = "reference"
    normed = jax.random.normal(jax.random.key(0), (1, TINY.length, TINY.width))

    @nnx.jit
    def found(attention, normed):
        shares, value = weights(attention, normed), attention.value(normed)
        read = jnp.einsum("bnhm,bmhd->bnhd", shares, value.reshape(1, TINY.length, TINY.heads, -1))
        return shares, attention.output(read.reshape(normed.shape)), attention(normed)

    shares, by_weights, output = found(attention, normed)
    total = shares.sum(axis=-1)
    np.testing.assert_allclose(jnp.where(total == 0, 1, total), 1, rtol=1e-5)
    assert float(total.mean()) > 0.5
    np.testing.assert_array_equal(jnp.triu(jnp.moveaxis(shares, 2, 1), 1), 0)
    np.testing.assert_allclose(by_weights, output, atol=1e-5)


def test_farther_takes_the_layer_of_the_least() -> None:
    look = Look(np.array([[0.1, 0.2]]), np.array([[0.5, 0.3]]), np.zeros((1, 2, 2, 4)))
    np.testing.assert_allclose(claims.farther(look), [0.1])


def test_order_of_arms() -> None:
    routing, random, local = np.array([[1.0, 1.0, 1.2, 1.1], [1.1, 1.1, 1.1, 1.1], [1.2, 1.1, 1.2, 1.0]])
    np.testing.assert_array_equal(claims.ordered(routing, random, local), [1, 1, 0, 0])


def test_training_moves_centroids_and_evaluation_does_not() -> None:
    model = build(TINY, "routing", nnx.Rngs(0))
    windows = jax.random.randint(jax.random.key(0), (2, TINY.length + 1), 0, 256)
    start = nnx.state(model, RoutingStatistic)
    before = jax.tree.leaves(jax.tree.map(jnp.copy, start))

    @nnx.jit
    def train(model, windows):
        return loss(1e-4, model, windows)

    total, metrics = train(model, windows)
    assert float(metrics["commitment"]) > 0
    np.testing.assert_allclose(total, metrics["bits"] * np.log(2) + 1e-4 * metrics["commitment"], rtol=1e-5)
    moved = jax.tree.leaves(nnx.state(model, RoutingStatistic))
    assert all((a != b).any() for a, b in zip(before, moved, strict=True))


def test_the_papers_sizes_can_be_built() -> None:
    config = PRESETS["paper"].config
    model = nnx.eval_shape(lambda: build(config, "routing", nnx.Rngs(0)))
    parameters = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert 1.3e8 < parameters < 1.7e8
    windows = jax.ShapeDtypeStruct((2, config.length + 1), jnp.int32)
    value, _ = nnx.eval_shape(partial(loss, config.commitment), model, windows)
    assert value.shape == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"length": 0}, {"routing_layers": 3}, {"local_heads": 1}, {"probe_windows": 100}, {"warm_up": 500},
        {"learning_rate": 0.0}, {"evaluate_every": 30},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused_by_name(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        replace(Config(), **fields)


def test_a_whole_run_settles_its_claims(tmp_path: Path) -> None:
    with open_run(EXPERIMENT, "tiny", TINY, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(TINY, run)
        held = {verdict.claim.name: verdict.held for verdict in run.verdicts}
        assert len(held) == 6
        # Four steps teach nothing.
        assert not held[claims.CONTENT_WINS.name]
        assert not held[claims.RECOVERS.name]
        assert not held[claims.FINDS_KEYS.name]
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")} == {"bits", "distance"}
