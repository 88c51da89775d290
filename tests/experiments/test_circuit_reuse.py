"""Prompts and their twins, a circuit set by hand, runs of the last token against whole texts, selections by hand."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.circuit_reuse import EXPERIMENT, claims, constructed, patching, pretrained, report, tasks
from experiments.circuit_reuse.config import PRESETS, Config, Pretrained
from jattn.interpret import Receiver, Set, Where, capture, edit, one_head_each, path_patch
from jattn.models.language_model import LanguageModel, LanguageModelConfig
from jattn.runs import open_run

LAYERS, HEADS = 2, 8
SIZES = LanguageModelConfig(200, 32, LAYERS, HEADS, 24, kv_heads=2)
VOCABULARY: dict[str, int] = {}


def encode(text: str) -> list[int]:
    """A word or a mark a token, by the order in which they come up."""
    return [VOCABULARY.setdefault(word, len(VOCABULARY)) for word in re.findall(r"\w+|[^\w ]", text)]


def test_twins_of_names_differ_in_who_gives() -> None:
    prompts = tasks.names(encode, 32, np.random.default_rng(0))
    for row, (tokens, twin) in enumerate(zip(prompts.tokens, prompts.corrupt, strict=True)):
        (place,) = np.flatnonzero(tokens != twin)
        right, wrong = prompts.answers[row]
        assert (tokens[place], twin[place]) == (wrong, right)
        assert np.flatnonzero(prompts.wrong[row])[-1] == place
        assert (tokens[prompts.right[row]] == right).all()
        assert (tokens[prompts.wrong[row]] == wrong).all()
        changed = tokens != prompts.unrelated[row]
        np.testing.assert_array_equal(changed, prompts.right[row] | prompts.wrong[row])
        assert len(set(prompts.unrelated[row][changed].tolist())) == 3
    first = prompts.right.argmax(axis=1) < prompts.wrong.argmax(axis=1)
    assert first.mean() == 0.5
    again = tasks.names(encode, 32, np.random.default_rng(0))
    for one, other in zip(prompts, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_twins_of_colours_ask_for_another_object() -> None:
    prompts = tasks.colours(encode, 20, np.random.default_rng(1))
    words = {number: word for word, number in VOCABULARY.items()}
    for row, (tokens, twin) in enumerate(zip(prompts.tokens, prompts.corrupt, strict=True)):
        (place,) = np.flatnonzero(tokens != twin)
        assert prompts.lengths[row] - place == 5  # a question mark, a new line, "A", a colon are behind
        for text, answer in ((tokens, prompts.answers[row, 0]), (twin, prompts.answers[row, 1])):
            told = [words[token] for token in text[: place + 1].tolist()]
            question = told[len(told) - told[::-1].index("Q") :]
            assert question[question.index(told[-1]) - 1].capitalize() == words[answer]
        assert prompts.right[row].sum() == 1
        assert prompts.wrong[row].sum() == 2
        shown = {words[token].capitalize() for token in tokens[prompts.right[row] | prompts.wrong[row]].tolist()}
        assert shown == {words[answer] for answer in prompts.answers[row].tolist()}


def test_tokenizers_that_cut_words_are_refused() -> None:
    with pytest.raises(ValueError, match="encode must make at least 5 of Aaron, Adam, Alan"):
        tasks.names(lambda text: [ord(letter) for letter in text], 1, np.random.default_rng(0))


def test_path_patching_finds_the_circuit_set_by_hand() -> None:
    found = constructed.effects(np.random.default_rng(3), 4)
    np.testing.assert_allclose(found.direct, constructed.DIRECT, atol=1e-4)
    np.testing.assert_allclose(found.steering, constructed.STEERING, atol=1e-4)
    # With nothing frozen a head's effect is all of what follows from it.
    np.testing.assert_allclose(found.unfrozen, [[1, 0], [1, 0], [2 / 3, 1 / 3]], atol=1e-4)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(SIZES, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def texts(model):
    """Texts of three lengths, their twins, answers, and both as read."""
    rng = np.random.default_rng(4)
    lengths = np.array([7, 9, 8])
    tokens = rng.integers(1, 200, (3, 9)) * (np.arange(9) < lengths[:, None])
    twins = tokens.copy()
    twins[:, 4] = rng.integers(1, 200, 3)
    answers = jnp.asarray(rng.integers(0, 200, (2, 3)))
    both = [patching.read(model, jnp.asarray(each), jnp.asarray(lengths), 12) for each in (tokens, twins)]
    return tokens, twins, lengths, (answers[0], answers[1]), both


@pytest.mark.parametrize("to_queries", [False, True])
def test_sweeps_of_the_last_token_are_those_of_whole_texts(model, texts, to_queries) -> None:
    tokens, twins, lengths, answers, (clean, corrupt) = texts
    receivers = np.zeros((LAYERS, HEADS), bool)
    receivers[1, [3, 5]] = to_queries
    have = patching.sweep(model, clean, corrupt, answers, receivers=receivers if to_queries else None, at_once=5)
    last = jnp.arange(9) == lengths[:, None] - 1
    to = [Receiver("layers.1.attention.query", Where(positions=last, heads=jnp.asarray(receivers[1])))]

    def one(senders):
        logits = path_patch(model, (tokens,), (twins,), senders, to if to_queries else (), positions=last)
        rows = logits[jnp.arange(3), lengths - 1]
        return rows[jnp.arange(3), answers[0]] - rows[jnp.arange(3), answers[1]]

    tokens, twins = jnp.asarray(tokens), jnp.asarray(twins)
    want = jax.jit(lambda masks: jax.lax.map(one, masks))(one_head_each(LAYERS, HEADS))
    np.testing.assert_allclose(have.reshape(-1, 3), want, atol=1e-5)


def test_heads_without_output_have_no_effect_and_the_only_other_has_all(texts) -> None:
    """Feed-forward layers and all heads but one write nothing: the twin differs at the last token by that one alone."""
    tokens, twins, lengths, answers, _ = texts
    model = LanguageModel(SIZES, rngs=nnx.Rngs(2))
    for layer, block in enumerate(model.blocks):
        kept = (jnp.arange(32) // 4 == 2) & (layer == 1)
        block.attention.output.kernel[...] = jnp.where(kept[:, None], block.attention.output.kernel[...], 0)
        for parameter in jax.tree.leaves(
            nnx.state(block.feed_forward, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Param)
        ):
            parameter[...] = jnp.zeros_like(parameter[...])
    clean, corrupt = (patching.read(model, jnp.asarray(each), jnp.asarray(lengths), 12) for each in (tokens, twins))
    patched = patching.sweep(model, clean, corrupt, answers, at_once=6)
    before, after = (np.asarray(patching.margin(model, each, *answers)) for each in (clean, corrupt))
    nothing = np.zeros((LAYERS, HEADS))
    found = pretrained.Search(before, after, patched, pretrained.Reads(nothing, nothing, nothing, nothing))
    want = np.zeros((LAYERS, HEADS))
    want[1, 2] = 1
    np.testing.assert_allclose(found.effects(), want, atol=1e-3)


def test_what_is_changed_in_the_last_row_is_changed_there_alone(model, texts) -> None:
    tokens, _, lengths, answers, (read, _) = texts
    inside = np.arange(12) < lengths[:, None]
    rows = np.asarray(patching.rows(model, read))
    np.testing.assert_allclose((rows * inside[:, None]).sum(axis=-1), 1, atol=1e-5)
    plain = np.asarray(model(jnp.asarray(tokens)))[np.arange(3), lengths - 1]
    heads = jnp.zeros((LAYERS, HEADS), bool).at[1, 2].set(True)
    # A row of its own weights changes nothing; other weights do what they do in whole texts.
    np.testing.assert_allclose(patching.override(model, read, heads, jnp.asarray(rows[1, :, 2])), plain, atol=1e-5)
    given = pretrained.row_on(np.arange(12) == np.array([[1], [3], [5]]))
    names = [f"layers.1.attention.{name}" for name in ("value", "head_output")]
    sites = capture(model, jnp.asarray(tokens), sites=names).sites
    outputs = (
        sites[names[1]].at[jnp.arange(3), lengths - 1, 2].set(sites[names[0]][jnp.arange(3), jnp.array([1, 3, 5]), 0])
    )
    want = capture(model, jnp.asarray(tokens), edits=[edit(names[1], Set(outputs))]).output[np.arange(3), lengths - 1]
    np.testing.assert_allclose(patching.override(model, read, heads, jnp.asarray(given)), want, atol=1e-5)
    everyone, means = jnp.ones((LAYERS, HEADS), bool), patching.mean_outputs(model, read)
    kept = patching.margin_of_circuit(model, read, answers[0], answers[1], everyone, means)
    np.testing.assert_allclose(kept, patching.margin(model, read, *answers), atol=1e-5)


def test_heads_are_selected_by_hand() -> None:
    effects = np.array([[0.1, -0.5], [0.3, 0.0]])
    np.testing.assert_array_equal(pretrained.top(effects, 2), [[False, True], [True, False]])
    assert claims.heads(pretrained.top(effects, 2)) == ["0.1", "1.0"]


@pytest.mark.slow
def test_a_run_on_a_small_model_settles_every_claim(model, tmp_path: Path) -> None:
    part = Pretrained(searched=4, held_out_names=4, held_out_colours=12, random=2, batch=4, at_once=16)
    with open_run(EXPERIMENT, "laptop", Config(), tmp_path / "run", quiet=True) as run:
        found = pretrained.measure(model, encode, part, 0, run.stop_if_asked)
        claims.settle_pretrained(run, found, 0)
        told = report(run, found)
    assert len({verdict.claim.name for verdict in run.verdicts}) == len(run.verdicts) == 15
    assert set(told["heads"]) >= set(told["circuit"]) | set(told["best for colours"])
    assert 6 <= found.circuit.sum() <= 7


def test_a_smoke_run_holds(tmp_path: Path) -> None:
    config = PRESETS["smoke"].config
    with open_run(EXPERIMENT, "smoke", config, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(config, run)
    assert [verdict.held for verdict in run.verdicts] == [True]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="searched must be even"):
        Config(pretrained=Pretrained(searched=3))
    with pytest.raises(ValueError, match="parts must be among constructed, pretrained; got trained"):
        Config(parts=("trained",))
