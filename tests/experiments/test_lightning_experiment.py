"""The arms, the measurements on planted times, and a whole run."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.lightning import EXPERIMENT
from experiments.lightning.config import ARMS, PRESETS
from experiments.lightning.measure import decoding_bytes, exponent, flatness
from experiments.lightning.model import bits_without, build, evaluate, forgetting_at_once, losses
from jattn.runs import open_run

SMOKE = PRESETS["smoke"].config


def parameters(arm: str) -> int:
    model = nnx.eval_shape(lambda: build(PRESETS["laptop"].config, arm, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_arms_have_as_many_parameters() -> None:
    counts = {arm: parameters(arm) for arm in ARMS}
    counts["no_gate"] += 4 * 64**2
    assert max(counts.values()) < 1.006 * min(counts.values()), counts


@pytest.mark.parametrize("preset", ["laptop", "paper"])
@pytest.mark.parametrize("arm", ["softmax", "lightning"])
def test_presets_build(preset: str, arm: str) -> None:
    config = PRESETS[preset].config
    model = nnx.eval_shape(lambda: build(config, arm, nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((1, config.length + 1), jnp.int32)
    assert nnx.eval_shape(losses, model, tokens).shape == (1, config.length)


def test_what_forgets_at_once_reads_its_own_byte_alone() -> None:
    model = nnx.jit(lambda: build(SMOKE, "lightning", nnx.Rngs(0)))()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 9)))
    other = tokens.at[:, :4].set(7)
    nnx.update(model, forgetting_at_once(model))
    have, changed = (nnx.jit(losses)(model, each) for each in (tokens, other))
    np.testing.assert_allclose(have[:, 5:], changed[:, 5:], rtol=1e-5)


@pytest.mark.parametrize("arm", ["no_decay", "no_gate", "no_activation"])
def test_what_is_left_out_when_tested_is_what_the_arm_lacks(arm: str) -> None:
    """Weights of the whole model, less those of a gate, in the arm's model give the same."""
    whole, lacking = (nnx.jit(lambda arm=arm: build(SMOKE, arm, nnx.Rngs(0)))() for arm in ("lightning", arm))
    shapes = {path: each[...].shape for path, each in nnx.to_flat_state(nnx.state(lacking, nnx.Param))}
    for path, each in nnx.to_flat_state(nnx.state(whole, nnx.Param)):
        if each.ndim == 2:  # of the inner projection the last columns are the gate's
            each = each.replace(each[...][:, : shapes[path][-1]])
        nnx.update(lacking, nnx.from_flat_state({path: each}))
    windows = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 17)))
    bits, want = (nnx.jit(evaluate)(model, windows)["bits"] for model in (whole, lacking))
    have = nnx.jit(lambda model: bits_without(arm, model, windows))(whole)
    np.testing.assert_allclose(have, want, rtol=1e-6)
    assert abs(have - bits) > 1e-4


def test_times_that_are_planted() -> None:
    lengths = (512, 1024, 2048)
    taken = np.array([[1.0, 2.0, 4.0], [1.0, 4.0, 16.0]])
    np.testing.assert_allclose(exponent(lengths, taken), [1, 2], rtol=1e-6)
    np.testing.assert_allclose(flatness(taken), [4, 16])


def test_decoding_carries() -> None:
    carried = decoding_bytes(SMOKE)
    first, last = carried["lightning"]
    # A float32 matrix of head_dim² for each head and layer, twice as tall where positions double the width; a position.
    assert first == last
    assert carried["softmax"] == tuple(2 * SMOKE.layers * SMOKE.width * 4 * length for length in SMOKE.decoded)


def test_the_smoke_preset_runs(tmp_path: Path) -> None:
    with open_run(EXPERIMENT, "smoke", SMOKE, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(SMOKE, run)
        assert len(run.verdicts) == 7
        assert {verdict.claim.name for verdict in run.verdicts if verdict.held} >= {"decoding carries a constant state"}
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")} == {"bits", "time"}
