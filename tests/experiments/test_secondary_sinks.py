"""Synthetic trajectories and a network whose sinks are known, texts, and what is kept against dense arrays."""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kernels
from experiments.secondary_sinks import EXPERIMENT, constructed
from experiments.secondary_sinks.config import PRESETS, Config
from experiments.secondary_sinks.detector import (
    Sink,
    detect,
    largest_window,
    levels,
    primary_position,
    windows,
)
from experiments.secondary_sinks.survey import rank_correlation, reading
from experiments.secondary_sinks.texts import arithmetic, excerpt, table
from experiments.secondary_sinks.trace import (
    Reader,
    _cosines,
    feed_forward_stages,
    stage_cosines,
    trace,
    unchanged,
)
from jattn.data.corpus import Corpus, Document
from jattn.interpret import capture, mean_column_weights
from jattn.layers.block import Block
from jattn.layers.feed_forward import GatedLinearUnit
from jattn.models.language_model import LanguageModel, LanguageModelConfig
from jattn.runs import open_run

LAYERS = 30
NORMS = np.array([5.0] + [800] * 8 + [150] * 2 + [25000] * 17 + [1000] * 2)
"""A primary sink in two stages, cut between and at the end."""
STAGES = [(1, 9), (11, 28)]


def cosines(*planted: tuple[int, int, int, float]) -> np.ndarray:
    """Of 6 tokens; each of (position, start, lifetime, value) is planted."""
    found = np.random.default_rng(0).uniform(-0.5, 0.5, (LAYERS, 6))
    for position, start, lifetime, value in planted:
        found[start : start + lifetime, position] = value
    return found


def test_planted_levels_are_recovered() -> None:
    planted = cosines((0, 0, 30, 1.0), (2, 2, 7, 0.95), (3, 2, 7, -0.95), (4, 2, 26, 0.99), (5, 12, 2, 0.99))
    want = [Sink(2, 2, 7, "secondary"), Sink(3, 2, 7, "secondary"), Sink(4, 2, 24, "primary-like")]
    assert detect(planted, 0, STAGES) == want
    assert levels(want) == Counter({(2, 7): 2, (2, 24): 1})
    assert detect(planted, 0, STAGES, noise=0.0)[-1] == Sink(5, 12, 2, "secondary")


@pytest.mark.parametrize(("value", "found"), [(0.9, 0), (-0.9, 0), (np.nextafter(0.9, 1), 1), (0.5, 0)])
def test_the_bound_on_cosines_is_strict(value, found) -> None:
    assert len(detect(cosines((3, 2, 7, value)), 0, STAGES)) == found


def test_direction_decides_and_not_norm() -> None:
    primary = np.array([3.0, 4.0, 0.0])
    long_and_askew, short_and_aligned = np.array([300.0, 400.0, 866.0]), np.array([0.3, 0.4, 0.16])
    features = np.stack([primary, long_and_askew, short_and_aligned])
    lengths = np.linalg.norm(features, axis=1)
    alike = np.tile(features @ primary / lengths / lengths[0], (LAYERS, 1))
    np.testing.assert_allclose(alike[0], [1, 0.5, 0.95], atol=3e-3)
    assert [sink.position for sink in detect(alike, 0, STAGES)] == [2]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_primary_sink_is_chosen_by_norm_and_nothing_before_it_is_listed(place) -> None:
    norms = np.full((LAYERS, 6), 50.0)
    norms[:, 5] = 1e6
    norms[:, place] = NORMS
    assert primary_position(norms) == place
    everywhere = np.ones((LAYERS, 6))
    assert [sink.position for sink in detect(everywhere, place, STAGES)] == list(range(place + 1, 6))


@pytest.mark.parametrize(
    ("norms", "largest", "every"),
    [
        (NORMS, (11, 28), STAGES),
        (NORMS[:20], (11, 20), [(1, 9), (11, 20)]),
        (np.full(9, 7.0), None, []),
        (np.zeros(9), None, []),
        (np.arange(9.0, 0, -1), None, []),
        (np.array([1.0, 1, 9, 90, 90, 3]), (3, 5), [(2, 3), (3, 5)]),
        (np.array([0.0, 0, 5, 5, 0]), (2, 4), [(2, 4)]),
        (np.array([1.0, 1, 1, 8]), (3, 4), [(3, 4)]),
    ],
    ids=["two stages", "never drops", "flat", "zeros", "only falls", "two jumps", "from nothing", "at the end"],
)
def test_windows_by_hand(norms, largest, every) -> None:
    assert largest_window(norms) == largest
    assert windows(norms) == every
    assert all(begin < end for begin, end in every)


def test_without_a_primary_sink_there_is_none_and_false_windows_are_refused() -> None:
    assert detect(np.ones((LAYERS, 6)), 0, []) == []
    with pytest.raises(ValueError, match="windows of 30 layers"):
        detect(np.ones((LAYERS, 6)), 0, [(3, 31)])
    with pytest.raises(ValueError, match="factor must be above 1"):
        windows(NORMS, 1.0)
    with pytest.raises(ValueError, match="must be in one of the windows"):
        reading(STAGES, 9)
    assert reading(STAGES, 2) == slice(3, 10)


def test_rank_correlations() -> None:
    rising = np.arange(5.0)
    assert rank_correlation(rising, rising**3) == pytest.approx(1)
    assert rank_correlation(rising, -rising) == pytest.approx(-1)
    assert rank_correlation(rising, np.ones(5)) == 0


def test_mean_weights_of_columns_in_closed_form() -> None:
    length = 7
    uniform = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    harmonic = np.cumsum([0, *(1 / each for each in range(1, length + 1))])
    want = (harmonic[-1] - harmonic[:-1]) / (length - np.arange(length))
    np.testing.assert_allclose(mean_column_weights(jnp.asarray(uniform.sum(axis=0))[None], length)[0], want, rtol=1e-6)
    first = mean_column_weights(jnp.zeros((1, length)).at[0, 0].set(length), length)[0]
    np.testing.assert_array_equal(first, [1, 0, 0, 0, 0, 0, 0])


def test_cosines_of_massive_activations_are_those_of_float32() -> None:
    rng = np.random.default_rng(3)
    features = jnp.asarray(rng.normal(size=(1, 4, 64)) + 3e4 * np.eye(64)[5], jnp.bfloat16)
    wide = np.asarray(features, np.float64)[0]
    lengths = np.linalg.norm(wide, axis=1)
    want = wide @ wide.T / np.outer(lengths, lengths)
    np.testing.assert_allclose(_cosines(*2 * (features.astype(jnp.float32),))[0], want, atol=1e-6)


@pytest.fixture(scope="module")
def reader() -> Reader:
    sizes = LanguageModelConfig(40, 16, 3, 2, 24, kv_heads=1)
    return Reader(LanguageModel(sizes, rngs=nnx.Rngs(1)), 2, lambda: None)


TOKENS = np.random.default_rng(1).integers(0, 40, (3, 12))


def test_what_is_kept_is_that_of_stored_features_and_weights(reader) -> None:
    kept = trace(reader, TOKENS, nats=True)
    names = [*(f"layers.{layer}.residual" for layer in (1, 2)), "residual"]
    weights = [f"layers.{layer}.attention.weights" for layer in range(3)]
    output, sites = jax.jit(lambda tokens: capture(reader.model, tokens, sites=[*names, *weights]))(jnp.asarray(TOKENS))
    features = np.stack([np.asarray(sites[name], np.float64) for name in names], axis=1)
    lengths = np.linalg.norm(features, axis=-1)
    np.testing.assert_allclose(kept.norms, lengths, rtol=1e-5)
    references = features[:, :, :3] / lengths[:, :, :3, None]
    want = np.einsum("blcw,bltw->bclt", references, features / lengths[..., None])
    np.testing.assert_allclose(kept.cosines, want, atol=1e-5)
    np.testing.assert_allclose(kept.candidates, np.moveaxis(features[:, :, :3], 1, 2), rtol=1e-4, atol=1e-5)
    dense = np.stack([np.asarray(sites[name], np.float64) for name in weights], axis=1)
    np.testing.assert_allclose(kept.scores, dense.sum(axis=-2).mean(axis=2) / (12 - np.arange(12)), rtol=1e-5)
    logits = np.asarray(output, np.float64)[:, :-1]
    likely = np.take_along_axis(logits, TOKENS[:, 1:, None], axis=-1)[..., 0]
    assert not trace(reader, TOKENS).nats.size
    np.testing.assert_allclose(kept.nats, np.log(np.exp(logits).sum(axis=-1)) - likely, rtol=1e-4, atol=1e-5)


def test_sums_over_chunks_of_queries_add_and_padding_is_left_out(reader) -> None:
    site, residual, queries = "layers.1.attention.statistics", "layers.2.residual", jnp.arange(12)

    def told(tokens, rows=None):
        asked = {site: (kernels.ColumnSums(rows),)}
        sites = capture(reader.model, tokens, sites=[residual], statistics=asked).sites
        return sites[site].column_sums, sites[residual]

    @jax.jit
    def every(tokens):
        padded = jnp.pad(tokens, ((0, 0), (0, 4)))
        first, rest = told(tokens, queries < 5)[0], told(tokens, queries >= 5)[0]
        return told(tokens), first + rest, told(padded, jnp.arange(16) < 12)

    (whole, features), chunked, (padded, padded_features) = every(jnp.asarray(TOKENS))
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(padded[..., :12], whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(padded[..., 12:], 0)
    np.testing.assert_allclose(padded_features[:, :12], features, rtol=1e-4, atol=1e-5)


def test_the_present_norm_is_no_change_and_a_change_touches_its_token_from_its_layer_on(reader) -> None:
    before = trace(reader, TOKENS)
    changes = unchanged(reader.model, *TOKENS.shape)
    changes.norms[...] = before.added_norms
    same = trace(reader, TOKENS, changes)
    for name in ("norms", "cosines", "scores"):
        np.testing.assert_allclose(getattr(same, name), getattr(before, name), rtol=1e-4, atol=1e-5)

    changes = unchanged(reader.model, *TOKENS.shape)
    changes.norms[:, 1, 6] = 9
    after = trace(reader, TOKENS, changes)
    np.testing.assert_array_equal(after.norms[:, 0], before.norms[:, 0])
    np.testing.assert_array_equal(after.scores[:, :2], before.scores[:, :2])
    others = np.arange(12) != 6
    np.testing.assert_array_equal(after.norms[:, 1, others], before.norms[:, 1, others])
    np.testing.assert_allclose(after.added_norms[:, 1, 6], 9, rtol=1e-5)
    np.testing.assert_array_equal(after.norms[..., :6], before.norms[..., :6])


def test_a_vector_in_place_of_another_is_what_the_layer_adds(reader) -> None:
    changes = unchanged(reader.model, *TOKENS.shape)
    changes.norms[:, 2, 5] = 0
    changes.positions[:, 2, 5] = True
    changes.vectors[:, 2] = np.arange(16)
    after = trace(reader, TOKENS, changes)
    np.testing.assert_allclose(after.added_norms[:, 2, 5], np.linalg.norm(np.arange(16)), rtol=1e-5)


def test_a_map_of_rank_one_has_one_direction_for_any_input() -> None:
    layer = GatedLinearUnit(8, 12, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    layer.outer.kernel[...] = jnp.asarray(np.outer(rng.normal(size=12), rng.normal(size=8)), jnp.float32)
    block = Block(nnx.RMSNorm(8, rngs=nnx.Rngs(0)), None, nnx.RMSNorm(8, rngs=nnx.Rngs(0)), layer)
    features = jnp.asarray(rng.normal(size=(1, 9, 8)), jnp.float32)
    stages = feed_forward_stages(block, features)
    np.testing.assert_allclose(stages["output"], layer(block.feed_forward_norm(features)), atol=1e-6)
    found = {name: np.abs(_cosines(each[:, :1], each))[0, 0, 1:] for name, each in stages.items()}
    np.testing.assert_allclose(found["output"], 1, atol=1e-4)
    for name in ("input", "gate", "value"):
        assert found[name].max() < 0.95


def test_sums_are_right_and_texts_are_of_their_seed() -> None:
    for line in arithmetic(np.random.default_rng(0), 40).splitlines():
        _, line = line.split(". ", 1)
        for equation in line.split(", because "):
            assert len({eval(side) for side in equation.split(" = ")}) == 1
    for form, mark in (("markdown", "|"), ("commas", ","), ("columns", "  ")):
        rows = table(np.random.default_rng(1), 20, form).splitlines()
        assert all(mark in row for row in rows)
        assert rows == table(np.random.default_rng(1), 20, form).splitlines()
    corpus = Corpus("made up", (Document("short", b"no. "), Document("long", b"A sentence. " * 40)))
    assert excerpt(np.random.default_rng(2), corpus, 60, ". ") == "A sentence. " * 5


def test_the_sinks_that_weights_make_are_found() -> None:
    smoke = PRESETS["smoke"].config  # of its shapes, so that one program serves both
    tokens = constructed.texts(2, smoke.length, 3)
    reader = Reader(constructed.build(0), smoke.at_once, lambda: None)
    kept = trace(reader, tokens)
    for row in range(2):
        assert primary_position(kept.norms[row]) == 0
        within = windows(kept.norms[row, :, 0])
        assert within == [(constructed.PRIMARY_BLOCK, constructed.LAST_BLOCK)]
        made = detect(kept.cosines[row, 0], 0, within)
        assert [sink.position for sink in made] == np.flatnonzero(tokens[row] == constructed.SINK).tolist()
        assert set(levels(made)) == {(constructed.SINK_BLOCK, constructed.LAST_BLOCK - constructed.SINK_BLOCK)}
    stages = stage_cosines(reader, tokens, constructed.SINK_BLOCK, constructed.PRIMARY_BLOCK, 0)
    sinks = tokens == constructed.SINK
    assert np.abs(stages["output, of the primary's making"][sinks]).min() > 0.98
    assert np.abs(stages["input"][sinks]).max() < 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": ("nothing",)}, "parts must be among"),
        ({"strengths": (2.0,)}, "strengths must have 1"),
        ({"scales": (0.5, 1.0, 4.0)}, "scales must have 0.5 and 4"),
    ],
)
def test_settings_that_claims_cannot_be_judged_with_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**arguments)


def test_a_smoke_run_settles_its_claims(tmp_path: Path) -> None:
    config = PRESETS["smoke"].config
    with open_run(EXPERIMENT, "smoke", config, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(config, run)
    verdicts = {verdict.claim.name: verdict for verdict in run.verdicts}
    assert len(verdicts) == 13
    for name in (
        "sinks start at one layer",
        "the feed-forward layer maps them to one direction",
        "the norm sets how much a sink is read",
        "what is planted is found",
        "without what made it the primary sink is not read",
    ):
        assert verdicts[name].held, verdicts[name]
