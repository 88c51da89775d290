"""The ways of reading long windows, claims on planted numbers, and a whole run."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.landmark import EXPERIMENT, claims
from experiments.landmark.config import ARMS, LANDMARK, PLAIN, PRESETS
from experiments.landmark.measure import weights_by_block
from experiments.landmark.model import (
    BY_LANDMARKS,
    NONE,
    ExchangedBlocks,
    build,
    chunked_losses,
    landmark_losses,
    losses_of,
    retrieving,
    windowed,
)
from jattn.mechanisms import LandmarkAttention
from jattn.models.decoder import next_token_losses
from jattn.runs import open_run
from jattn.train import Fitted, create_state

SMOKE = PRESETS["smoke"].config
BYTES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 49)))


@pytest.mark.parametrize("preset", ["laptop", "paper"])
@pytest.mark.parametrize("arm", ARMS)
def test_presets_build(preset: str, arm: str) -> None:
    """In shapes: the loss, and its gradient, of both arms, which have as many parameters."""
    config = PRESETS[preset].config
    model = nnx.eval_shape(lambda: build(config, arm, nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((1, config.length + 1), jnp.int32)
    losses = losses_of(config, arm)
    assert nnx.eval_shape(losses, model, tokens).shape == (1, config.length)
    slope = nnx.eval_shape(nnx.grad(lambda model, tokens: losses(model, tokens).mean()), model, tokens)
    other = nnx.eval_shape(lambda: build(config, PLAIN, nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, slope) == jax.tree.map(jnp.shape, nnx.state(other, nnx.Param))


def test_chunks_that_retrieve_every_block_are_one_pass() -> None:
    config = replace(SMOKE, top_k=(20,), length=128, long_length=256)
    model = build(config, LANDMARK, nnx.Rngs(0))
    at_once = landmark_losses(config.block, model, BYTES)
    have = nnx.jit(lambda model: chunked_losses(config.block, config.chunk, model, BYTES)[0])(model)
    np.testing.assert_allclose(have, at_once, atol=2e-5)


@pytest.mark.parametrize("way", ["local", "windowed"])
def test_what_is_left_out_is_not_read(way: str) -> None:
    """In one layer, late bytes do not depend on early ones."""
    other = BYTES.at[:, :12].set(7)
    if way == "local":
        model = retrieving(SMOKE, build(SMOKE, LANDMARK, nnx.Rngs(0)), 1, NONE)

        def losses(model, tokens):
            return chunked_losses(SMOKE.block, SMOKE.chunk, model, tokens)[0]
    else:
        model, losses = windowed(SMOKE, build(SMOKE, PLAIN, nnx.Rngs(0))), next_token_losses
    have, changed = (nnx.jit(losses)(model, each) for each in (BYTES, other))
    np.testing.assert_allclose(have[:, 30:], changed[:, 30:], rtol=1e-5)
    assert np.abs(have[:, :12] - changed[:, :12]).min(axis=1).max() > 0


def test_blocks_are_chosen_in_every_way() -> None:
    """Random ones are finished ones and differ; none is none of them; by landmarks they are those of the attention."""
    attention, own = (kind(16, 2, 3, 2, rngs=nnx.Rngs(0)) for kind in (ExchangedBlocks, LandmarkAttention))
    query, landmarks = (jax.random.normal(jax.random.key(i), (1, 50 - 41 * i, 2, 8)) for i in (0, 1))
    cache = attention.empty_cache(1, 9)._replace(count=jnp.int32(5), landmark=landmarks)

    def chosen(way: int) -> np.ndarray:
        attention.way = way
        return np.asarray(attention.choose(query, cache)).reshape(-1, 2)

    drawn = chosen(0)
    assert (drawn[:, 0] < drawn[:, 1]).all()
    assert set(drawn.reshape(-1)) == set(range(5))
    assert (chosen(1) != drawn).any()
    assert chosen(NONE).min() >= 5
    np.testing.assert_array_equal(chosen(BY_LANDMARKS), np.asarray(own.choose(query, cache)).reshape(-1, 2))


def test_weights_by_block_are_shares() -> None:
    optimiser, key = SMOKE.optimiser(), jax.random.key(0)
    state = create_state(lambda rngs: build(SMOKE, LANDMARK, rngs), optimiser, key, SMOKE.seeds)
    read = weights_by_block(Fitted(*state, SMOKE.seeds), SMOKE, BYTES[:, : SMOKE.length + 1])
    assert read.shape == (SMOKE.seeds, SMOKE.layers, SMOKE.length // SMOKE.block)
    np.testing.assert_allclose(read.sum(axis=-1), 1, rtol=1e-5)
    assert (read > 0).all()


def settled(path: Path, worse: float = 0.0) -> dict[str, bool]:
    """Whether claims hold if retrieval is worth 0.02 bits, less `worse`, and long windows upset the plain model."""

    def of(bits: float, later: float = 0.0) -> np.ndarray:
        return np.tile(np.repeat([bits, bits + later], 32), (3, 1)) + 1e-4 * np.arange(3)[:, None]

    long = {"retrieved": of(2 + worse), "local": of(2.02), "random": of(2.01), "other random": of(2.01)}
    long["plain"] = of(2, later=1)
    before = {"retrieved": of(8), "local": of(8)}
    short = {"landmark": np.full(3, 2.02 + 5 * worse), "plain": np.full(3, 2.0), "before training": np.full(3, 8.0)}
    with open_run(EXPERIMENT, "smoke", SMOKE, path, quiet=True) as run:
        claims.settle(run, short, long, before, 32)
        return {verdict.claim.name: verdict.held for verdict in run.verdicts}


def test_claims_on_planted_bits(tmp_path: Path) -> None:
    held = settled(tmp_path / "held")
    assert len(held) == 4
    assert all(held.values())
    lost = settled(tmp_path / "lost", worse=0.02)
    assert [name for name, held in lost.items() if held] == ["text longer than in training does no harm"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"top_k": ()}, r"top_k must be at least one number from 1; got \(\)"),
        ({"long_length": 100}, "long_length must be a multiple of twice length = 32; got 100"),
        ({"parts": ("text", "books")}, "parts must be some of"),
        ({"chunk": 64}, "positions must stay within the 42 of training"),
    ],
)
def test_bad_settings_are_named(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SMOKE, **change)


def test_the_smoke_preset_runs(tmp_path: Path) -> None:
    with open_run(EXPERIMENT, "smoke", SMOKE, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(SMOKE, run)
        assert len(run.verdicts) == 6
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")} == {"bits", "long", "distance"}
