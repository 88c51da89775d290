"""What is measured, on numbers with known answers; conversion and damage; the paper's size; a whole small run."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.mixture_of_heads import EXPERIMENT
from experiments.mixture_of_heads.config import MULTI_HEAD, PRESETS, Config, Images, Mixture
from experiments.mixture_of_heads.images import PIXELS, Labelled, accuracy, accuracy_without_heads, loss, split
from experiments.mixture_of_heads.images import build as build_images
from experiments.mixture_of_heads.measure import (
    CLASSES,
    byte_classes,
    clearness,
    independence,
    unevenness,
    use_of_heads,
)
from experiments.mixture_of_heads.model import build, convert, losses_without_heads
from jattn.data.images import digits
from jattn.models.decoder import Decoder, next_token_losses
from jattn.runs import open_run

SMOKE = PRESETS["smoke"].config


def test_byte_classes() -> None:
    names = [CLASSES[index] for index in byte_classes(np.frombuffer(b"a Z9(\xc3=\n", np.uint8))]
    assert names == ["lower case", "space", "upper case", "digit", "bracket or quote", "other", "other", "space"]


def test_use_of_heads_in_numbers() -> None:
    """Independent of classes by construction, told apart by them, and a head used twice as much as it should be."""
    of_head, of_class = np.array([4.0, 1.0, 1.0]), np.array([100.0, 200, 300, 400, 500, 600])
    alike = np.outer(of_head, of_class)[None, None]
    assert independence(alike)[0] > 0.999
    np.testing.assert_allclose(clearness(alike), 0, atol=1e-6)
    np.testing.assert_allclose(unevenness(alike), 1)
    apart = np.concatenate([alike, np.kron(np.eye(3), np.full((1, 2), 50))[None, None]], axis=1)
    assert independence(apart)[0] > 0.999  # the least clear layer
    assert independence(apart[:, 1:])[0] < 1e-9
    np.testing.assert_allclose(clearness(apart)[0, 1], 1)
    assert np.isinf(unevenness(alike * np.array([1, 1, 0])[:, None]))[0]


def test_use_is_counted_by_class() -> None:
    """By hand: the last byte, a digit, keeps head 1, all others head 0; a second seed the other way round."""
    chosen = np.zeros((2, 1, 1, 3, 2), bool)
    chosen[0, 0, 0, :2, 0] = chosen[0, 0, 0, 2, 1] = chosen[1, 0, 0, :2, 1] = chosen[1, 0, 0, 2, 0] = True
    use = use_of_heads(chosen, byte_classes(np.frombuffer(b"ab7", np.uint8))[None])
    first = np.array([[0, 2, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(use[:, 0], np.stack([first, first[::-1]]))


def test_a_model_with_all_heads_kept_is_what_it_was_and_with_fewer_it_is_not() -> None:
    graph, state = nnx.split(nnx.jit(lambda: build(SMOKE, MULTI_HEAD, nnx.Rngs(0)))())

    def losses(of: Callable[[Decoder, jax.Array], jax.Array]) -> jax.Array:
        return jax.jit(lambda state, tokens: of(nnx.merge(graph, state), tokens))(state, tokens)

    tokens, key = jax.random.randint(jax.random.key(0), (2, 12), 0, 256), jax.random.key(1)
    want = losses(next_token_losses)
    kept = losses(lambda model, tokens: next_token_losses(convert(model, Mixture(1, 3)), tokens))
    np.testing.assert_allclose(kept, want, atol=1e-5)
    np.testing.assert_allclose(losses(partial(losses_without_heads, 4, key)), want, atol=1e-5)
    assert jnp.abs(losses(partial(losses_without_heads, 2, key)) - want).max() > 1e-2


def test_no_digit_is_in_two_parts_and_all_classes_are_in_each() -> None:
    parts = split(Config())
    assert [len(part.labels) for part in parts] == [1797 - 450 - 300, 300, 450]
    source = digits()
    known = {image.tobytes(): label for image, label in zip(source.images, source.labels, strict=True)}
    assert len(known) == 1797
    shown = [np.round(16 * np.asarray(part.images)[..., 0]).astype(np.uint8) for part in parts]
    seen = [image.tobytes() for part in shown for image in part]
    assert len(set(seen)) == 1797
    labels = np.concatenate([part.labels for part in parts])
    np.testing.assert_array_equal([known[image] for image in seen], labels)
    even = np.bincount(source.labels) / 1797
    for part in parts:
        assert np.abs(np.bincount(part.labels) - even * len(part.labels)).max() <= 1


def test_accuracy_on_images_is_of_all_heads_if_none_is_left_out() -> None:
    graph, state = nnx.split(build_images(SMOKE, None, nnx.Rngs(0)))
    part = split(SMOKE).test

    def of(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
        return float(jax.jit(lambda state: function(nnx.merge(graph, state), *arguments, part))(state))

    assert part.images.shape[1:] == (PIXELS, PIXELS, 1)
    key = jax.random.key(1)
    kept = [of(partial(accuracy_without_heads, keep), key) for keep in (SMOKE.heads, 1)]
    assert kept[0] == of(accuracy)
    right = np.asarray(nnx.merge(graph, state)(part.images)).argmax(axis=-1) == np.asarray(part.labels)
    np.testing.assert_allclose(kept[0], right.mean(), atol=1e-6)


@pytest.mark.parametrize("arm", PRESETS["paper"].config.arms)
def test_the_papers_size_builds(arm: str) -> None:
    """12 layers of width 768: 4 · 768² for attention, 3 · 768 · 2048 behind it, and the routers."""
    config = PRESETS["paper"].config
    shapes = nnx.state(nnx.eval_shape(lambda: build(config, arm, nnx.Rngs(0))), nnx.Param)
    kinds = {MULTI_HEAD: None, "no_shared_50": 12}.get(arm, 14)
    layer = 4 * 768**2 + 3 * 768 * 2048 + 2 * 768 + 768 * (kinds or 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 12 * layer + 2 * 256 * 768 + 768
    active = {name: mixture.shared + mixture.top_k for name, mixture in config.mixtures.items()}
    assert active == {"mixture_100": 12, "mixture_75": 9, "mixture_50": 6, "unbalanced_50": 6, "no_shared_50": 6}


@pytest.mark.parametrize("arm", [None, "mixture_50"])
def test_the_papers_size_of_images_builds(arm: str | None) -> None:
    """12 layers of width 192 on 64 patches, with logits and a gradient that come out in shapes; sizes as by hand."""
    config = PRESETS["paper"].config
    model = nnx.eval_shape(lambda: build_images(config, arm and config.mixtures[arm], nnx.Rngs(0)))
    layer = 4 * 192**2 + 2 * 192 * 768 + 768 + 192 + 2 * 2 * 192 + (14 * 192 if arm else 0)
    outside = (1 + 1) * 192 + 64 * 192 + 2 * 192 + 192 * 10 + 10
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 12 * layer + outside
    batch = Labelled(jnp.zeros((config.images.batch_size, PIXELS, PIXELS, 1)), jnp.zeros(config.images.batch_size, int))
    slopes = nnx.eval_shape(nnx.grad(partial(loss, config.balance_weight), has_aux=True), model, batch)[0]
    assert jax.tree.map(jnp.shape, slopes) == jax.tree.map(jnp.shape, nnx.state(model, nnx.Param))


@pytest.mark.parametrize(
    "fields",
    [
        {"heads": 6},
        {"images": Images(width=60)},
        {"seeds": 0},
        {"learning_rate": 0.0},
        {"balance_weight": -1.0},
        {"steps": 0},
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_name(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        replace(Config(), **fields)


def test_a_whole_run_settles_its_claims(tmp_path: Path) -> None:
    with open_run(EXPERIMENT, "smoke", SMOKE, tmp_path / "run", quiet=True) as opened:
        EXPERIMENT.run(SMOKE, opened)
        assert len(opened.verdicts) == 7
        assert {verdict.measured.repetitions for verdict in opened.verdicts} == {2}
    assert {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")} == {"curves", "differences", "use"}
