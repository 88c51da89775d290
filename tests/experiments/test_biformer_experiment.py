"""Mosaics and what is measured, on cases with known answers; planted claims; the paper's size; a whole small run."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.biformer import EXPERIMENT, claims
from experiments.biformer.config import FULL, PRESETS, RANDOM, WINDOW, Config
from experiments.biformer.measure import (
    attention_work,
    best_regions,
    differences_as,
    excess_of_work,
    lists_of,
    majority,
    share_of_class,
)
from experiments.biformer.model import Counter, accuracy, build, random_lists
from experiments.biformer.mosaics import Mosaics, Pictures, compose, split
from jattn.models.biformer import multiply_adds
from jattn.runs import open_run

SMOKE = PRESETS["smoke"].config
LITTLE = replace(SMOKE, top_k=(1, 4, 8, 16))
MOSAICS = jax.jit(lambda key: compose(split(SMOKE).test, 4, 125, key))(jax.random.key(0))


@cache
def builder(config: Config, arm: str) -> Callable[[jax.Array], Counter]:
    """Compiled once for all seeds."""
    return nnx.jit(lambda key: build(config, arm, nnx.Rngs(key)))


def built(config: Config, arm: str, seed: int = 0) -> Counter:
    """A model to be looked at."""
    model = builder(config, arm)(jax.random.key(seed))
    model.eval()
    return model


def test_parts_share_no_picture_and_leave_none_out() -> None:
    parts = split(SMOKE)
    assert [len(part.classes) for part in parts] == [1797 - 597 - 200, 200, 597]
    again = split(SMOKE)
    for part, same in zip(parts, again, strict=True):
        np.testing.assert_array_equal(part.images, same.images)
    rows = np.concatenate([part.images.reshape(-1, 64) for part in parts])
    whole = np.sort(np.array([row.tobytes() for row in rows]))
    other = replace(SMOKE, seed=7)
    moved = np.concatenate([part.images.reshape(-1, 64) for part in split(other)])
    np.testing.assert_array_equal(whole, np.sort(np.array([row.tobytes() for row in moved])))


def test_answers_by_hand() -> None:
    """Nine pictures, each of one grey: five of class 0, three of 1, one of 2."""
    classes = np.array([0] * 5 + [1] * 3 + [2])
    source = Pictures(np.repeat(np.arange(9, dtype=np.uint8), 64).reshape(9, 8, 8), classes, 8)
    made = jax.jit(lambda key: compose(source, 3, 20, key))(jax.random.key(1))
    assert made.images.shape == (20, 24, 24, 1)
    shown = np.round(8 * np.asarray(made.images).reshape(20, 3, 8, 3, 8)).astype(int)
    assert (shown == shown[:, :, :1, :, :1]).all()
    tiles = shown[:, :, 0, :, 0].reshape(20, 9)
    assert (np.sort(tiles) == np.arange(9)).all()
    np.testing.assert_array_equal(classes[tiles], made.classes)
    np.testing.assert_array_equal(np.array([3, 2, 0])[made.classes], made.answers)  # of five alike, four others: 3
    assert majority(made) == 5 / 9


def test_accuracy_is_that_of_the_answers_of_all_mosaics() -> None:
    model = built(LITTLE, FULL)
    twice = jax.tree.map(lambda each: jnp.concatenate([each, each[::-1]]), MOSAICS)
    have = nnx.jit(accuracy)(model, twice)
    answers, classes, _ = nnx.jit(lambda model, images: model(images))(model, MOSAICS.images)
    np.testing.assert_allclose(have["accuracy"], (answers.argmax(-1) == MOSAICS.answers).mean(), rtol=1e-6)
    np.testing.assert_allclose(have["named"], (classes.argmax(-1) == MOSAICS.classes).mean(), rtol=1e-6)


@pytest.mark.parametrize(("arm", "reads"), [(WINDOW, "itself"), (RANDOM, "its list"), ("routed_4", "its routes")])
def test_a_tiles_answer_depends_on_the_regions_it_reads_alone(arm: str, reads: str) -> None:
    """One block: the derivative of a tile's logits by another's pixels is zero where it is not read."""
    model = built(LITTLE, arm, 3)
    one = jax.tree.map(lambda each: each[:1], MOSAICS)

    @nnx.jit
    def looked_at(model: Counter, one: Mosaics) -> tuple[jax.Array, jax.Array]:
        jacobian = jax.jacrev(lambda images: model(images)[0].sum(axis=-1)[0])(one.images)
        return jacobian[:, 0, :, :, 0], lists_of(model, one)[0]

    jacobian, lists = looked_at(model, one)
    moved = np.abs(np.asarray(jacobian).reshape(16, 4, 8, 4, 8)).max(axis=(2, 4)).reshape(16, 16) > 0
    read = np.zeros((16, 16), bool)
    read[np.arange(16)[:, None], np.asarray(lists[0])] = True
    np.testing.assert_array_equal(moved, read | np.eye(16, dtype=bool))
    if reads == "itself":
        assert (moved == np.eye(16, dtype=bool)).all()


def test_lists_can_be_overruled() -> None:
    model = built(LITTLE, "routed_4")
    given = random_lists(LITTLE, jax.random.key(5))
    assert given.shape == (1, 16, 4)
    assert all(len(set(row)) == 4 for row in np.asarray(given[0]).tolist())
    one, logits = jax.tree.map(lambda each: each[:1], MOSAICS), nnx.jit(lambda *given: given[0](*given[1:])[0])
    own, displaced = logits(model, one.images), logits(model, one.images, given)
    assert np.abs(own - displaced).max() > 1e-3
    routes = nnx.jit(lists_of)(model, one)[0]
    np.testing.assert_allclose(logits(model, one.images, routes), own, atol=1e-6)


def test_share_of_class_by_hand() -> None:
    """Two tiles of one class, two of another: one in three others is alike; itself does not count."""
    classes = jnp.array([[0, 0, 1, 1]])
    everything = jnp.broadcast_to(jnp.arange(4), (1, 4, 4))
    np.testing.assert_allclose(share_of_class(everything, classes), 1, rtol=1e-6)
    alike = jnp.array([[[0, 1], [1, 0], [2, 3], [3, 2]]])
    np.testing.assert_allclose(share_of_class(alike, classes), 3, rtol=1e-6)
    itself = jnp.arange(4).reshape(1, 4, 1)
    np.testing.assert_allclose(share_of_class(itself, classes), 0)


def test_full_attention_read_by_lists() -> None:
    model = built(LITTLE, FULL)
    few = jax.tree.map(lambda each: each[:4], MOSAICS)
    all_read, half = nnx.jit(partial(differences_as, ("routed_16", "routed_8"), LITTLE))(model, few)
    assert all_read < 1e-5
    assert half > 1e-3


@pytest.mark.parametrize("arm", [FULL, "routed_4", "routed_16", WINDOW])
def test_work_is_the_models_beyond_its_linear_layers(arm: str) -> None:
    """Patches, 4 widths² of attention and 6 widths² behind it for each of 64 tokens, logits."""
    linear = 64 * (16 * 16 + 10 * 16**2) + 16 * 14
    assert multiply_adds(LITTLE.body(arm), 32) - linear == attention_work(LITTLE, arm)


def test_the_best_division() -> None:
    """The derivative of S⁴ + 2 k (HW)² / S² is zero there, and the work with windows of 7 is known."""
    for side, top_k in ((56, 1), (96, 4)):
        best = best_regions(side, top_k)
        slope = jax.grad(lambda regions, side=side, top_k=top_k: regions**4 + 2 * top_k * side**4 / regions**2)(best)
        np.testing.assert_allclose(slope / best**3, 0, atol=1e-4)
    work = {8: 8**4 + 2 * 56**4 // 8**2, 14: 14**4 + 2 * 56**4 // 14**2}
    assert excess_of_work(56, 1) == 1
    np.testing.assert_allclose(excess_of_work(56, 1, 8), work[8] / work[14])


def settled(path: Path, worse: float = 0.0) -> dict[str, bool]:
    """Whether claims hold if routing reaches 0.7, less `worse`, full attention 0.71, and the others 0.5."""
    jitter = 1e-3 * np.arange(3)
    right = {FULL: 0.71, "routed_4": 0.7 - worse, "routed_16": 0.7, WINDOW: 0.5, RANDOM: 0.5}
    accuracies = {arm: value + jitter for arm, value in right.items()}
    with open_run(EXPERIMENT, "smoke", SMOKE, path, quiet=True) as run:
        alike, differences = (3 - 10 * worse + jitter, 1 + jitter), (1e-6 + worse + jitter / 1e3, 1 + jitter)
        claims.settle(run, SMOKE, accuracies, 0.5 + jitter, alike, differences)
        return {verdict.claim.name: verdict.held for verdict in run.verdicts}


def test_claims_on_planted_numbers(tmp_path: Path) -> None:
    held = settled(tmp_path / "held")
    assert len(held) == 7
    assert all(held.values()), held
    lost = settled(tmp_path / "lost", worse=0.18)
    assert [name for name, held in lost.items() if held] == [claims.LESS_WORK.name, claims.BEST_DIVISION.name]


@pytest.mark.parametrize("arm", [FULL, "routed_4"])
def test_the_papers_size_builds(arm: str) -> None:
    """BiFormer-T without convolutions over patches: 10 widths² + 12 widths a block, merging, and what is around."""
    config = PRESETS["paper"].config
    shapes = nnx.state(nnx.eval_shape(lambda: build(config, arm, nnx.Rngs(0))), nnx.Param)
    widths, depths = np.array([64, 128, 256, 512]), np.array([2, 2, 8, 2])
    blocks = (depths * (10 * widths**2 + 12 * widths)).sum()
    merging = sum(2 * w + 4 * w * 2 * w + 2 * w for w in widths[:-1])
    around = 16 * 64 + 64 + 2 * 64 + 56 * 56 * 64 + 2 * 512 + 512 * 14 + 14
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == blocks + merging + around


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"source": "imagenet"}, "source must be one of"),
        ({"top_k": (1, 16)}, r"top_k must be distinct and have 4 and one below all 16; got \(1, 16\)"),
        ({"top_k": (4, 16, 17)}, "top_k must be from 1 to 16"),
        ({"test_mosaics": 100}, "test_mosaics must be a multiple of 125; got 100"),
        ({"depths": (1, 1)}, "depths"),
        ({"head_width": 5}, "head_width must divide"),
        ({"learning_rate": 0.0}, "learning_rate must be positive; got 0.0"),
    ],
)
def test_bad_settings_are_named(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(Config(), **change)


def test_the_smoke_preset_runs(tmp_path: Path) -> None:
    with open_run(EXPERIMENT, "smoke", SMOKE, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(SMOKE, run)
        assert len(run.verdicts) == 7
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")} == {"curves", "work", "regions"}
