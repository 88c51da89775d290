"""Scores by hand, prompts of tokens, heads whose behaviour is known, and a small model's rows against its weights."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.retrieval_heads import EXPERIMENT, constructed, pretrained, reading
from experiments.retrieval_heads.config import PRESETS, Pretrained
from experiments.retrieval_heads.needles import HELD_OUT, SCORED, Prompt, build_prompt
from experiments.retrieval_heads.score import copied, mean_score, recall, retrieval_score
from jattn.interpret import capture
from jattn.models.language_model import LanguageModel, LanguageModelConfig
from jattn.runs import open_run
from jattn.runs.report import write_report

CONTEXT = np.array([3, 5, 8, 5, 9, 1])
"""The needle is 5, 8, 5, 9 at places 1 to 4."""
SPAN = (1, 5)


def encode(text: str) -> list[int]:
    """A word or a mark a token, by a number of its own."""
    return [
        sum(256**place * ord(letter) for place, letter in enumerate(word[:3])) for word in re.findall(r"\w+|\S", text)
    ]


@pytest.mark.parametrize(
    ("argmax", "produced", "times", "as_set"),
    [
        ([1, 2, 3, 4], [5, 8, 5, 9], 1, 1),
        ([1, 2, 1, 4], [5, 8, 5, 9], 1, 0.75),
        ([2, 2, 0, 0], [8, 8, 1, 1], 0.5, 0.25),
        ([1, 2, 3, 4], [8, 5, 9, 5], 0, 0),
        ([0, 5, -1, 0], [3, 1, 1, 3], 0, 0),
        ([], [], 0, 0),
    ],
    ids=["whole", "twice from one place", "repeated", "looks but does not copy", "outside", "nothing said"],
)
def test_scores_by_hand(argmax, produced, times, as_set) -> None:
    argmax, produced = np.array([argmax], int), np.array(produced, int)
    hits = copied(argmax, CONTEXT, produced, SPAN)
    assert retrieval_score(hits, argmax, 4).tolist() == [times]
    assert retrieval_score(hits, argmax, 4, "set").tolist() == [as_set]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 9)), max_size=12))
def test_a_set_is_at_most_whole_and_no_more_than_every_time(rows) -> None:
    argmax, produced = (np.array([row[part] for row in rows], int) for part in (0, 1))
    hits = copied(argmax[None], CONTEXT, produced, SPAN)
    (as_set,), (times,) = (retrieval_score(hits, argmax[None], 4, form) for form in ("set", "times"))
    assert 0 <= as_set <= min(1, times)


def test_recall_counts_words_and_wrong_answers_are_no_score() -> None:
    assert recall("", "a bronze key") == 0
    assert recall("The KEY, a key.", "a bronze key") == pytest.approx(2 / 3)
    scores = np.arange(6.0).reshape(3, 1, 2)
    np.testing.assert_array_equal(mean_score(scores, np.array([0.9, 0.5, 0.6])), [[2, 3]])
    with pytest.raises(ValueError, match="no answer of 3"):
        mean_score(scores, np.array([0.5, 0, 0.2]))


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_the_needle_stands_where_the_prompt_says(depth) -> None:
    haystack = encode("It rained . " * 100)
    prompt = build_prompt(encode, SCORED[0], haystack, depth, 200)
    assert len(prompt.tokens) == 200
    sentence = encode(SCORED[0].sentence)
    assert prompt.tokens[slice(*prompt.span)].tolist() == sentence
    assert depth == 0 or prompt.tokens[prompt.span[0] - 1] == ord(".")
    without = build_prompt(encode, SCORED[0], haystack, depth, 200, absent=True)
    assert len(without.tokens) == 200
    assert without.span == prompt.span
    assert not set(encode("Varnholt spoons")) & set(without.tokens[:150].tolist())
    backwards = build_prompt(encode, SCORED[0], haystack, depth, 200, order=np.arange(len(sentence))[::-1])
    assert backwards.tokens[slice(*prompt.span)].tolist() == sentence[::-1]


def test_prompts_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match="length must leave room"):
        build_prompt(encode, SCORED[0], encode("word " * 300), 0.5, 30)
    with pytest.raises(ValueError, match="haystack must have at least"):
        build_prompt(encode, SCORED[0], encode("word"), 0.5, 200)


def test_needles_share_no_telling_word() -> None:
    def telling(needle) -> set[str]:
        return {word for word in re.findall(r"\w+", needle.sentence.lower()) if len(word) > 5}

    words = [telling(needle) for needle in SCORED + HELD_OUT]
    assert sum(map(len, words)) == len(set().union(*words))


def test_the_head_that_copies_scores_one_and_rows_too_late_score_nothing() -> None:
    rng = np.random.default_rng(5)
    problem = constructed.problem(rng, vocabulary=24, length=16, needle=4)
    for form in constructed.scores(problem, 24):
        assert dict(zip(constructed.HEADS, form, strict=True)) == {
            "previous token": 0, "first token": 0, "induction": 1, "uniform": 0,
        }  # fmt: skip
    assert constructed.scores(problem, 24, shift=1)[0].max() < 0.5


@pytest.fixture(scope="module")
def reader() -> pretrained.Reader:
    sizes = LanguageModelConfig(30, 16, 2, 2, 24, kv_heads=1)
    part = Pretrained(length=20, answer=4, at_once=2)
    return pretrained.Reader(LanguageModel(sizes, rngs=nnx.Rngs(1)), encode, str, (0,), part)


def test_rows_that_answer_are_those_of_the_weights(reader) -> None:
    rng = np.random.default_rng(2)
    prompts = [Prompt(rng.integers(1, 30, 20), (5, 9), SCORED[0]) for _ in range(3)]
    begun = pretrained.read(reader, prompts)
    said = pretrained.answers(reader, prompts, begun)
    found = pretrained.score(reader, prompts, said, rng)
    for row, prompt in enumerate(prompts):
        text = np.concatenate([prompt.tokens, np.array(said.tokens[row], int)])[None]
        names = [f"layers.{layer}.attention.weights" for layer in range(2)]
        captured = jax.jit(lambda text, names=names: capture(reader.model, text, sites=names))(jnp.asarray(text))
        assert captured.output[0, 19:-1].argmax(axis=-1).tolist() == said.tokens[row]
        places = np.stack([np.asarray(captured.sites[name])[0, :, 19:-1].argmax(axis=-1) for name in names])
        hits = (places >= 5) & (places < 9) & (text[0][places] == np.array(said.tokens[row]))
        np.testing.assert_array_equal(found.times[row], hits.sum(axis=-1) / 4)
        looks = (places >= 5) & (places < 9)
        np.testing.assert_array_equal(found.looking[row], looks.sum(axis=-1) / 4)


def test_what_a_head_reads_is_its_rows_of_weights(reader) -> None:
    rng = np.random.default_rng(3)
    prompt, said = Prompt(rng.integers(1, 30, 20), (5, 9), SCORED[0]), [4, 7, 2]
    found = pretrained.head_reads(reader, prompt, said, (1, 0), "Head 1.0")
    text = jnp.asarray(np.concatenate([prompt.tokens, said])[None])
    site = "layers.1.attention.weights"
    weights = jax.jit(lambda text: capture(reader.model, text, sites=[site]).sites[site])(text)
    np.testing.assert_allclose(found.weights, weights[0, 0, 19:22], atol=1e-6)
    assert found.said == ["[4]", "[7]", "[2]"]
    assert found.tokens[:20] == [f"[{token}]" for token in prompt.tokens.tolist()]
    page = reading.page(found)
    assert page.count("<h2>") == 3
    assert f"reads {found.weights[0].sum():.2f} of its weight here" in page


def test_a_smoke_run_settles_its_claims(tmp_path: Path) -> None:
    config = PRESETS["smoke"].config
    with open_run(EXPERIMENT, "smoke", config, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(config, run)
    verdicts = {verdict.claim.name: verdict for verdict in run.verdicts}
    assert verdicts["an induction head scores one"].held
    assert set(verdicts) == {"an induction head scores one", "it emerges with the task"}
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        "copying_scores.svg", "copying.html", "captions.json",
    }  # fmt: skip
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<iframe sandbox") == 1
