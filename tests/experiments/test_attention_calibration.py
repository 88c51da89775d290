"""Runs from a layer on against the whole model, calibration of single heads against edits, choice of heads, prompts."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.attention_calibration import EXPERIMENT, sweep, texts
from experiments.attention_calibration.config import PRESETS
from experiments.attention_calibration.measure import choose, draw_columns, draw_heads
from jattn.data.corpus import Corpus, Document
from jattn.interpret import CalibrateSinks, capture, edit
from jattn.models.language_model import LanguageModel, LanguageModelConfig
from jattn.runs import open_run

LAYERS, HEADS, LENGTH = 2, 4, 9
ANSWERS = (5, 7)
TOKENS = np.random.default_rng(0).integers(30, size=(5, LENGTH))
THRESHOLD, FACTOR = 0.5, 0.4


@pytest.fixture(scope="module")
def stacked() -> sweep.Stack:
    sizes = LanguageModelConfig(30, 16, LAYERS, HEADS, 24, kv_heads=2, implementation="reference")
    model = LanguageModel(sizes, rngs=nnx.Rngs(1))
    for block in model.blocks:  # sharper than at random, so that some heads have sinks and others none
        block.attention.query.kernel[...] *= 6
    return sweep.stack(model, ANSWERS, 2)


@pytest.fixture(scope="module")
def reading(stacked) -> sweep.Reading:
    return sweep.read(stacked, TOKENS, (0, LAYERS))


def whole(stacked, heads) -> np.ndarray:
    """Preferences of the model as it is, its attention edited layer by layer."""
    edits = [
        edit(f"layers.{layer}.attention.attention", CalibrateSinks(jnp.asarray(heads[layer]), THRESHOLD, FACTOR))
        for layer in range(LAYERS)
    ]
    logits = np.asarray(edited(stacked.model, edits))
    return logits[:, ANSWERS[1]] - logits[:, ANSWERS[0]]


@nnx.jit
def edited(model, edits):
    return capture(model, jnp.asarray(TOKENS), edits=edits).output[:, -1]


def test_reading_keeps_what_the_model_has(stacked, reading) -> None:
    names = [f"layers.{layer}.{site}" for layer in range(LAYERS) for site in ("residual", "attention.weights")]
    logits, sites = nnx.jit(lambda model: capture(model, jnp.asarray(TOKENS), sites=names))(stacked.model)
    np.testing.assert_allclose(reading.preferences, logits[:, -1, 7] - logits[:, -1, 5], atol=1e-5)
    for layer in range(LAYERS):
        np.testing.assert_allclose(reading.residuals[layer], sites[f"layers.{layer}.residual"], atol=1e-5)
        columns = np.asarray(sites[f"layers.{layer}.attention.weights"]).sum(axis=2) / np.arange(LENGTH, 0, -1)
        np.testing.assert_allclose(reading.scores[layer], columns, atol=1e-5)


def test_heads_alone_are_the_edited_model_and_without_sinks_the_very_same(stacked, reading) -> None:
    sinks = sweep.find_sinks(reading.scores, THRESHOLD)
    assert sinks.any()
    assert not sinks.any(axis=-1).all()
    found = sweep.calibrate_alone(stacked, reading, THRESHOLD, FACTOR)
    for layer in range(LAYERS):
        for head in range(HEADS):
            heads = np.zeros((LAYERS, HEADS), bool)
            heads[layer, head] = True
            np.testing.assert_allclose(found[layer, head], whole(stacked, heads), atol=1e-4)
            without = ~sinks[layer, :, head].any(axis=-1)
            np.testing.assert_array_equal(found[layer, head][without], reading.preferences[without])
            assert without.all() or (found[layer, head] != reading.preferences).any()


def test_heads_together_are_the_edited_model_and_compile_once(stacked) -> None:
    reading = sweep.read(stacked, TOKENS, (1, 2))
    compiled = []
    for count in range(3):
        heads = np.random.default_rng(count).random((LAYERS, HEADS)) < 0.5
        heads[0] = False
        spread = np.broadcast_to(heads[:, None], (LAYERS, len(TOKENS), HEADS))
        found = sweep.calibrate_together(stacked, reading, sweep.calibrate_sinks(spread, THRESHOLD, FACTOR))
        np.testing.assert_allclose(found, whole(stacked, heads), atol=1e-4)
        compiled.append(sweep._go_on._cache_size())  # pyright: ignore[reportAttributeAccessIssue]
    assert len(set(compiled)) == 1


def test_layers_that_differ_are_refused() -> None:
    model = LanguageModel(LanguageModelConfig(30, 16, 2, 2, 24, windows=(4, None)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="model must have layers that are alike"):
        sweep.stack(model, ANSWERS, 2)


def test_heads_are_kept_only_where_more_is_right() -> None:
    labels = np.array([True, True, False, False])
    unchanged = np.array([1.0, -1.0, -1.0, 2.0])  # two of four are right
    alone = np.array([[unchanged, [1.0, 1.0, -1.0, 2.0]], [[-1.0, 1.0, -1.0, 2.0], [3.0, -9.0, -9.0, 9.0]]])
    assert choose(alone, unchanged, labels).tolist() == [[False, True], [False, False]]


def test_draws_are_as_many_and_others() -> None:
    rng = np.random.default_rng(0)
    among = np.array([[True, False, True], [True, True, False]])
    drawn = draw_heads(among, 3, rng)
    assert drawn.sum() == 3
    assert not (drawn & ~among).any()
    sinks = rng.permuted(np.broadcast_to(np.arange(10) > 6, (3, 2, 10)), axis=-1)
    sinks[..., 0] = False
    columns = draw_columns(sinks, rng)
    np.testing.assert_array_equal(columns.sum(axis=-1), sinks.sum(axis=-1))
    assert not (columns & sinks).any()
    assert not columns[..., 0].any()


def test_prompts_are_of_one_length_and_of_other_documents_in_the_test(monkeypatch) -> None:
    def corpus(name: str, documents: list[str]) -> Corpus:
        text = " ".join(f"Word{'abcdefgh'[number % 8] * (number + 1)} " + "and more " * 20 + "." for number in range(8))
        return Corpus(name, tuple(Document(each, text.replace("Word", f"{each[:4]}X").encode()) for each in documents))

    monkeypatch.setattr(texts, "moby_dick", lambda: corpus("novel", ["Aaaa", "Bbbb"]))
    addresses = ["1790_a", "1801_b", "1950_c"]
    made = {"1790": "Cccc", "1801": "Dddd", "1950": "Eeee"}

    def speeches() -> Corpus:
        plain = corpus("addresses", addresses).documents
        return Corpus("s", tuple(Document(n, c.replace(n[:4].encode(), made[n[:4]].encode())) for n, c in plain))

    monkeypatch.setattr(texts, "state_of_the_union", speeches)
    words: dict[str, int] = {}

    def encode(text: str) -> list[int]:
        return [words.setdefault(word, len(words)) for word in re.findall(r"\w+|\S", text)]

    task = texts.build_task(encode, 48, 8, 12, 0)
    assert task.calibration.tokens.shape == (8, 48)
    assert task.test.tokens.shape == (12, 48)
    assert task.answers == (encode("novel")[0], encode("speech")[0])
    names = {number: word for word, number in words.items()}
    place = len(encode(texts.BEFORE))
    for prompts, novel, speech in ((task.calibration, "Aaaa", "Cccc"), (task.test, "Bbbb", "Dddd")):
        for tokens, label in zip(prompts.tokens, prompts.labels, strict=True):
            assert names[tokens[place]].startswith(speech if label else novel)
        assert len({tuple(row) for row in prompts.tokens.tolist()}) == len(prompts.tokens)
    with pytest.raises(ValueError, match="length must leave room for 8 tokens"):
        texts.build_task(encode, 20, 8, 8, 0)
    with pytest.raises(ValueError, match="texts must have 40 sentences"):
        texts.build_task(encode, 48, 80, 8, 0)


def test_a_smoke_run_settles_its_claims(tmp_path: Path) -> None:
    config = PRESETS["smoke"].config
    with open_run(EXPERIMENT, "smoke", config, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(config, run)
    assert len(run.verdicts) == 9
    assert all(np.isfinite(verdict.control.mean) for verdict in run.verdicts)
