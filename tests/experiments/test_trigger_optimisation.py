"""Projection, gradients against finite differences, losses and defences by hand; planted claims; a whole small run."""

import json
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.scipy.ndimage import map_coordinates

from experiments import trigger_optimisation
from experiments.trigger_optimisation import EXPERIMENT, ablation, claims, losses
from experiments.trigger_optimisation.alternation import Inner, levels, outer_gradient, validation_batches
from experiments.trigger_optimisation.augmentations import Augmentation, draw, view, views, warp
from experiments.trigger_optimisation.config import (
    ARMS,
    BLTO,
    CLEAN,
    FROZEN_CLEAN,
    METHODS,
    PATCH,
    PRESETS,
    SINUSOID,
    TRANSFER,
    TRUNCATED,
    Config,
)
from experiments.trigger_optimisation.contrastive import Training
from experiments.trigger_optimisation.data import split
from experiments.trigger_optimisation.defences import (
    Examined,
    Scores,
    excess_silhouette,
    fit_probe,
    least_active,
    one_of_each,
    score,
    spectral_detection,
)
from experiments.trigger_optimisation.encoders import Convolution, Learner, batch_first, batch_last
from experiments.trigger_optimisation.examination import Examination
from experiments.trigger_optimisation.figures import HEADINGS, attacks_and_defences
from experiments.trigger_optimisation.triggers import LEVELS, Generator, fixed, project, rounded
from jattn.runs import Stopped, open_run

SMOKE = PRESETS["smoke"].config
PARTS = split(SMOKE, 0)


def test_parts_share_no_image_and_begin_with_the_target() -> None:
    parts = split(replace(SMOKE, pre_training=1000, probe=200, validation=100, test=497), 0)
    assert [len(part.labels) for part in parts] == [1000, 200, 100, 497]
    assert (np.asarray(PARTS.pre_training.labels[: SMOKE.poisoned]) == SMOKE.target).all()
    images = np.concatenate([part.images for part in parts])
    np.testing.assert_array_equal(np.round(255 * images) / np.float32(255), images)
    assert images.shape[1:] == (16, 16, 1)
    again = np.concatenate([part.images for part in split(replace(SMOKE, pre_training=1797 - 100), 1)])
    alike = [np.sort([each.tobytes() for each in every]) for every in (images, again)]
    np.testing.assert_array_equal(*alike)


def test_images_of_a_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 10
    images = generator.integers(0, 256, (200, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    config = replace(SMOKE, source=str(tmp_path / "some.npz"), side=32)
    found = split(config, 0)
    assert found.test.images.shape == (40, 32, 32, 3)
    known = {(image / np.float32(255)).tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert [known[np.asarray(image).tobytes()] for image in found.test.images] == found.test.labels.tolist()
    np.savez(tmp_path / "other.npz", pictures=images)
    with pytest.raises(ValueError, match="source must have the arrays images and labels"):
        split(replace(config, source=str(tmp_path / "other.npz")), 0)


@settings(max_examples=30, deadline=None)
@given(
    arrays(np.uint8, (2, 4, 4, 1)),
    arrays(np.float32, (2, 4, 4, 1), elements=st.floats(-3, 3, width=32)),
    st.integers(0, 255),
)
def test_projection_is_exact_after_rounding(levels: np.ndarray, change: np.ndarray, radius: int) -> None:
    images = jnp.asarray(levels / np.float32(255))
    wanted = project(images, images + change, radius / LEVELS)
    np.testing.assert_allclose(wanted, np.clip(images + np.clip(change, -radius / 255, radius / 255), 0, 1), atol=1e-6)
    found = np.asarray(rounded(images, wanted, radius))
    whole = np.round(255 * found.astype(np.float64))
    np.testing.assert_allclose(255 * found, whole, atol=1e-4)
    assert np.abs(whole - levels).max() <= radius
    assert whole.min() >= 0
    assert whole.max() <= 255


@pytest.mark.parametrize("arm", [CLEAN, PATCH, SINUSOID])
def test_fixed_triggers_keep_to_epsilon(arm: str) -> None:
    images = PARTS.test.images
    changed = np.round(255 * np.abs(rounded(images, fixed(arm)(images, 16 / LEVELS), 16) - images))
    assert changed.max() == (0 if arm == CLEAN else 16)
    if arm == PATCH:
        assert (changed[:, :-4] == 0).all()
        assert (changed[:, :, :-4] == 0).all()


def test_convolution_is_that_of_xla() -> None:
    layer = Convolution(3, 5, 2, nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    kernel = layer.kernel[...].reshape(3, 3, 3, 5)
    want = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(batch_first(layer(batch_last(images))), want, atol=1e-5)
    with pytest.raises(ValueError, match="sides that are multiples of 2; got 7 x 8"):
        layer(jnp.zeros((3, 7, 8, 1)))


def test_views_that_change_nothing_and_views_by_hand() -> None:
    several, one = jax.jit(views, static_argnums=0), jax.jit(view, static_argnums=0)
    still = Augmentation(crop=1.0, rotation=0.0, contrast=0.0, noise=0.0, blur=0.0)
    images = PARTS.test.images[:3]
    np.testing.assert_allclose(several(still, images, jax.random.key(0)), images, atol=1e-6)
    drawn = jax.tree.map(lambda each: each[0], draw(images.shape, images.dtype, jax.random.key(1)))
    turned = one(replace(still, rotation=90.0), images[0], drawn._replace(uniform=jnp.full(9, 1.0)))
    np.testing.assert_allclose(turned[..., 0], np.rot90(images[0, ..., 0], -1), atol=1e-5)
    cropped = one(replace(still, crop=7 / 15), images[0], drawn._replace(uniform=jnp.zeros(9)))  # the first 8 pixels
    np.testing.assert_allclose(cropped[::15, ::15, 0], images[0, :8:7, :8:7, 0], atol=1e-5)
    noise = draw((500, 8, 8, 1), jnp.dtype("float32"), jax.random.key(2)).normal
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.02)
    colours = jax.random.uniform(jax.random.key(3), (2, 4, 4, 3))
    grey = several(replace(still, grey=1.0), colours, jax.random.key(0))
    np.testing.assert_allclose(grey, np.repeat(colours @ np.array([0.299, 0.587, 0.114])[:, None], 3, -1), atol=1e-5)


def test_warp_and_its_derivative_are_those_of_map_coordinates() -> None:
    image, zoom, angle, place = jax.random.normal(jax.random.key(0), (6, 4, 2)), 0.8, 0.2, jnp.array([0.3, -0.9])
    rows, columns = jnp.meshgrid(jnp.arange(6) - 2.5, jnp.arange(4) - 1.5, indexing="ij")
    turned = np.cos(angle) * rows - np.sin(angle) * columns, np.sin(angle) * rows + np.cos(angle) * columns
    at = [zoom * turned[0] + 2.5 + 0.2 * 2.5 * 0.3, zoom * turned[1] + 1.5 - 0.2 * 1.5 * 0.9]

    def oracle(image):
        return jnp.stack([map_coordinates(image[..., each], at, order=1, mode="nearest") for each in range(2)], -1)

    def ours(image):
        return warp(image, jnp.float32(zoom), jnp.float32(angle), place)

    def both(function, image):
        return function(image), jax.grad(lambda image: (function(image) ** 3).sum())(image)

    (found, back), (want, wanted_back) = (jax.jit(partial(both, each))(image) for each in (ours, oracle))
    np.testing.assert_allclose(found, want, atol=1e-6)
    np.testing.assert_allclose(back, wanted_back, atol=1e-4)
    by_zoom = jax.jit(jax.grad(lambda zoom: warp(image, zoom, jnp.float32(angle), place).sum()))
    assert np.isnan(by_zoom(jnp.float32(zoom)))  # not taken, and not taken for 0 either


def test_wrong_labels_are_those_of_the_images_that_are_poisoned() -> None:
    parts, config = split(Config(), 0), Config()
    images, labels = map(np.asarray, ablation.with_wrong_labels(parts, config).pre_training)
    before, known = map(np.asarray, parts.pre_training)
    assert (labels[: config.poisoned] == config.target).all()
    true = {image.tobytes(): label for image, label in zip(before, known, strict=True)}
    found = np.array([true[image.tobytes()] for image in images])
    assert (found[: config.poisoned] != config.target).all()
    np.testing.assert_array_equal(found[config.poisoned :], labels[config.poisoned :])
    np.testing.assert_array_equal(np.sort(found), np.sort(known))


def test_losses_by_hand() -> None:
    first, second = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(losses.info_nce(first, second, 1.0), -np.log(np.e / (np.e + 2)), rtol=1e-6)
    np.testing.assert_allclose(losses.simsiam((first, second), (second, first)), -1, rtol=1e-6)
    np.testing.assert_allclose(losses.byol((first, second), (-second, -first)), 4, rtol=1e-6)
    np.testing.assert_allclose(losses.alignment(first, second[::-1]), 2, rtol=1e-6)
    np.testing.assert_allclose(losses.uniformity(first), -4, rtol=1e-6)


def test_outer_gradients_are_those_of_finite_differences() -> None:
    """Through augmentation and projection with fixed keys; the truncated one through three inner steps, whole."""
    generator = np.random.default_rng(0)

    def random(shapes):  # biases too: where nothing is changed the projection has no derivative
        return jax.tree.map(lambda each: jnp.asarray(0.3 * generator.standard_normal(each.shape)), shapes)

    with jax.enable_x64(True):
        # So many are poisoned that every batch has some.
        config = replace(SMOKE, inner_steps=3, unrolled=3, batch_size=4, poisoned=40)
        parts = jax.tree.map(lambda each: each.astype(jnp.float64) if each.dtype == jnp.float32 else each, PARTS)
        both = levels(config, parts, 16 / LEVELS)
        learner = random(nnx.state(nnx.eval_shape(lambda: Learner(config, config.encoder, 1, nnx.Rngs(0)))))
        optimiser = both.surrogate.optimiser.init(learner)
        earlier = Training(learner, learner, optimiser, jax.random.key(1), jnp.int32(0))
        variables = random(nnx.state(nnx.eval_shape(lambda: Generator(config, 1, nnx.Rngs(0)))))
        flat, restore = jax.flatten_util.ravel_pytree(variables)
        direction, key = random(flat), jax.random.key(2)
        descend = jax.jit(lambda variables: both.descend(earlier, variables, config.unrolled))
        outer = jax.jit(lambda variables, inner: both.problem().sampled(key).outer(variables, Inner(inner, inner)))
        direct, truncated = (jax.jit(partial(outer_gradient, arm, both)) for arm in (BLTO, TRUNCATED))
        later = descend(variables)

        def slope(gradient):
            return jax.flatten_util.ravel_pytree(gradient)[0] @ direction

        def difference(objective):
            ahead, behind = (objective(restore(flat + step * direction)) for step in (1e-6, -1e-6))
            return (ahead - behind) / 2e-6

        found = slope(direct(variables, earlier, later, key))
        np.testing.assert_allclose(found, difference(lambda each: outer(each, later.parameters)), rtol=1e-5)
        through = slope(truncated(variables, earlier, later, key))
        np.testing.assert_allclose(through, difference(lambda each: outer(each, descend(each).parameters)), rtol=1e-5)
        assert np.abs(found / through - 1) > 1e-4  # what the paper's direct term leaves out is there


def test_poison_is_where_it_should_be_and_validation_batches_are_of_their_classes() -> None:
    both = levels(SMOKE, PARTS, 16 / LEVELS)
    generator = nnx.state(Generator(SMOKE, 1, nnx.Rngs(0)))
    changed = np.abs(jax.jit(both.poisoned)(generator) - PARTS.pre_training.images).max(axis=(1, 2, 3))
    assert (changed[: SMOKE.poisoned] > 0).all()
    assert (changed[SMOKE.poisoned :] == 0).all()
    known = {np.asarray(image).tobytes(): int(label) for image, label in zip(*PARTS.validation, strict=True)}
    to_target, to_others = (
        [[known[np.asarray(image).tobytes()] for image in images] for images in (batch.images, batch.references)]
        for batch in validation_batches(both)
    )
    assert SMOKE.target not in to_target[0]
    assert set(to_target[1]) == {SMOKE.target}
    assert SMOKE.target not in to_others[1]


def test_probe_and_scores() -> None:
    generator = np.random.default_rng(0)
    centres = 5 * np.eye(3)
    labels = np.arange(90) % 3
    features = centres[labels] + 0.1 * generator.standard_normal((90, 3))
    head = fit_probe(features, labels, 4)
    np.testing.assert_array_equal(head(features), labels)
    found = score(head(features), np.where(np.arange(90) < 30, 1, labels), labels, 1)
    np.testing.assert_allclose(found, (1, 20 / 60))  # of thirty sent there, ten were of the target itself


def test_probes_of_victims_say_what_pictures_are_taken_for() -> None:
    parts = jax.tree.map(lambda each: jnp.stack([each, each]), PARTS)
    look = Examination(SMOKE, parts)
    look._programs["pixels"] = (lambda _, images: images.reshape(len(images), -1)), lambda: None
    labels = np.asarray(PARTS.probe.labels)
    for label in (SMOKE.target, SMOKE.target + 1):
        one = PARTS.probe.images[int(np.argmax(labels == label))]
        first, second = look.by_probe("pixels", nnx.State({}), jnp.broadcast_to(one, parts.test.images.shape))
        assert first == second
        assert first.success == (label == SMOKE.target)
        assert first.accuracy > 0.5


def test_defences_find_what_is_far() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((300, 8))
    labels = np.arange(300) % 3
    of_target = np.flatnonzero(labels == 0)
    assert 0.2 < spectral_detection(features[of_target], 20) < 0.8
    assert abs(excess_silhouette(features, labels, 0)) < 0.1
    features[of_target[:20]] += 10
    assert spectral_detection(features[of_target], 20) == 1
    assert excess_silhouette(features, labels, 0) > 0.3
    np.testing.assert_array_equal(least_active(np.array([[3.0, 1.0, 2.0, 0.0]]), 0.5), [0, 2])
    np.testing.assert_array_equal(one_of_each(np.array([1, 1, 0, 2, 0]), 4), [0, 2, 3, 1])


def settled(path: Path, reached: float) -> dict[str, bool]:
    """Whether claims hold if BLTO reaches so much success, and all that comes with it."""
    jitter = 1e-3 * np.arange(3)
    success = dict.fromkeys(ARMS, 0.1) | {
        BLTO: reached,
        FROZEN_CLEAN: 0.3,
        CLEAN: 0.01,
        TRUNCATED: 0.9,
        TRANSFER: reached - 0.2,
    }
    of_methods = {arm: dict.fromkeys(METHODS, value + jitter) for arm, value in success.items()}
    right = {arm: dict.fromkeys(METHODS, (0.93 if arm == CLEAN else 0.82 + reached / 8) + jitter) for arm in ARMS}
    ones = np.ones((40, 3)) + jitter
    similarities = {
        "before": reached * ones, "after": (2 * reached - 0.88) * ones, "untrained": 0.1 * ones,
        "others_before": 0.1 * ones, "others_after": 0.1 * ones,
    }  # fmt: skip
    near = {
        BLTO: {"distance": np.array([[1, 1 - reached]] * 3), "uniformity": np.array([[-3, reached - 3]] * 3)},
        PATCH: {"distance": np.ones((3, 2)), "uniformity": np.ones((3, 2))},
    }
    spectral = dict.fromkeys(ARMS, 1.0 + jitter) | {BLTO: 1.5 - reached + jitter}
    fooled = {CLEAN: 0.1 + jitter, PATCH: 0.11 + jitter}
    with open_run(EXPERIMENT, "smoke", SMOKE, path, quiet=True) as run:
        claims.settle(run, of_methods, right, fooled, 0.5 + jitter, similarities, near, spectral, 10)
        return {verdict.claim.name: verdict.held for verdict in run.verdicts}


def test_claims_on_planted_numbers(tmp_path: Path) -> None:
    held = settled(tmp_path / "held", 0.9)
    assert len(held) == 14
    assert all(held.values()), held
    lost = settled(tmp_path / "lost", 0.05)
    assert {name for name, held in lost.items() if held} <= {claims.ABOVE_FIXED.name}


def test_the_papers_size_builds() -> None:
    """The kernels of ResNet-18, 11.2 million numbers."""
    config = PRESETS["paper"].config
    shapes = nnx.state(nnx.eval_shape(lambda: Learner(config, config.encoder, 3, nnx.Rngs(0)).encoder), nnx.Param)
    kernels = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim == 2)
    stages = sum(
        9 * (a * b + 3 * b * b) + (a * b if a != b else 0) for a, b in ((64, 64), (64, 128), (128, 256), (256, 512))
    )
    assert kernels == 27 * 64 + stages
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    made = jax.eval_shape(lambda image: Generator(config, 3, nnx.Rngs(0))(image, 8 / LEVELS), image)
    assert made.shape == image.shape
    assert config.poisoned_share == 0.01


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rounds": 15}, "rounds must be a multiple of period = 6; got 15"),
        ({"unrolled": 26}, "unrolled must be at most inner_steps = 25; got 26"),
        ({"encoder": "vit"}, "encoder must be one of"),
        ({"epsilon": 256}, "epsilon must be from 0 to 255; got 256"),
        ({"arms": (BLTO,)}, "arms must be of"),
        ({"learning_rate": {"simclr": 0.1}}, "learning_rate must have a positive number for"),
        ({"pruned": 1.0}, "pruned must be at least 0 and below 1; got 1.0"),
    ],
)
def test_bad_settings_are_named(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(Config(), **change)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at most 1797 together"):
        split(replace(Config(), test=498), 0)
    with pytest.raises(ValueError, match="poisoned must be at most"):
        split(replace(SMOKE, poisoned=60), 0)


def test_the_smoke_preset_runs(tmp_path: Path) -> None:
    with open_run(EXPERIMENT, "smoke", SMOKE, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(SMOKE, run)
        assert len(run.verdicts) == 8
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")} == {
        "success", "defences", "objective", "features", "images",
    }  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["share of poisoned images"] == SMOKE.poisoned_share
    assert set(results["attack and defences"]) == set(SMOKE.arms)


def test_the_table_of_defences_has_the_mean_of_seeds_in_the_right_columns() -> None:
    one = Examined(*(Scores(0.9 - 0.1 * i, 0.1 * i) for i in range(4)), spectral=0.25, silhouette=0.5)
    two = Examined(*(Scores(0.7 - 0.1 * i, 0.1 * i + 0.2) for i in range(4)), spectral=0.75, silhouette=0.0)
    names, rows = attacks_and_defences({"half_of_it": {"byol": [one, two], "simsiam": [one]}, "clean": {"byol": [two]}})
    assert names == ["half of it, byol", "half of it, simsiam", "clean, byol"]
    # None, a probe of labelled poison, fine-tuned, pruned; then accuracy without a defence, fine-tuned and pruned.
    np.testing.assert_allclose(rows[0], [0.1, 0.2, 0.3, 0.4, 0.8, 0.6, 0.5, 0.5, 0.25], atol=1e-12)
    np.testing.assert_allclose(rows[1], [0.0, 0.1, 0.2, 0.3, 0.9, 0.7, 0.6, 0.25, 0.5], atol=1e-12)
    assert len(HEADINGS) == rows.shape[1]


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after every stage and every period of the generator, it ends as if it had never been."""
    for kind in (trigger_optimisation.Programs, trigger_optimisation.Examination):  # compiled once for all runs
        parts = jax.tree.map(lambda *each: jnp.stack(each), *(split(SMOKE, seed) for seed in range(SMOKE.seeds)))
        shared = kind(SMOKE, parts)
        monkeypatch.setattr(trigger_optimisation, kind.__name__, lambda config, parts, shared=shared: shared)
    stops = 0
    for name in ("whole", "stopped"):
        for _ in range(8):
            with suppress(Stopped), open_run(EXPERIMENT, "smoke", SMOKE, tmp_path / name, quiet=True) as run:
                run.stop_request.signal = signal.SIGTERM if name == "stopped" else None
                EXPERIMENT.run(SMOKE, run)
                break
            stops += 1
    assert stops == 5
    for each in ("results.json", "claims.json", "metrics/generator_blto.jsonl"):
        assert (tmp_path / "whole" / each).read_bytes() == (tmp_path / "stopped" / each).read_bytes()
