"""Windows with pass keys, what of an answer is right, and claims on planted answers."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.landmark import EXPERIMENT, claims, pass_key
from experiments.landmark.config import LANDMARK, PRESETS, PassKey
from experiments.landmark.measure import read_in_chunks
from experiments.landmark.model import BY_LANDMARKS, LANDMARK_ID, build
from jattn.mechanisms import insert_landmarks, strip_landmarks
from jattn.runs import open_run

SMOKE = PRESETS["smoke"].config
FILLER = ord("~")
WHOLE = re.compile(
    rb"(~*) The pass key is (\d{5})\. Remember it\. (\d{5}) is the pass key\. (~*) "
    rb"What is the pass key\? The pass key is (\d{5})"
)


def written(window: np.ndarray) -> bytes:
    return bytes(np.asarray(window, np.uint8))


def test_windows_have_a_note_a_question_and_the_answer() -> None:
    text = jnp.full(1000, FILLER, jnp.uint8)
    windows, starts = pass_key.sample(text, 128, 20, jax.random.key(0))
    assert windows.shape == (20, 129)
    keys = set()
    for window, start in zip(np.asarray(windows), np.asarray(starts), strict=True):
        before, key, again, _, answer = WHOLE.fullmatch(written(window)).groups()
        assert key == again == answer
        assert len(before) == start
        again_at = start + pass_key.AGAIN
        assert written(window)[again_at : again_at + pass_key.DIGITS] == key
        keys.add(key)
    assert len(keys) == 20
    assert len(set(starts.tolist())) > 10


def test_text_that_is_not_written_over_stays() -> None:
    text = jnp.asarray(np.random.default_rng(0).integers(128, 256, (1, 200)))
    have = pass_key.with_pass_key(text, jnp.asarray([[1, 2, 3, 4, 5]]), jnp.asarray([30]))
    kept = np.asarray(have != text).nonzero()[1]
    assert set(kept) == {*range(30, 30 + pass_key.NOTE_LENGTH), *range(200 - pass_key.TAIL_LENGTH, 200)}


def test_notes_are_spread_over_windows_out_of_reach_of_the_last_chunk() -> None:
    windows = jnp.full((9, 401), FILLER)
    found = [WHOLE.fullmatch(written(each)) for each in np.asarray(pass_key.tested_windows(SMOKE, windows))]
    starts = [len(each[1]) for each in found]
    assert starts[0] == 0
    assert np.diff(starts).min() > 20
    assert max(np.diff(starts)) - min(np.diff(starts)) <= 1
    assert min(len(each[4]) for each in found) == SMOKE.layers * (SMOKE.chunk + SMOKE.block)
    assert len({each[2] for each in found}) == 9


def test_a_window_too_short_is_named() -> None:
    assert pass_key.last_start(pass_key.NOTE_LENGTH + pass_key.TAIL_LENGTH - 1) == 0
    with pytest.raises(ValueError, match="length must be at least 103 for a pass key; got 64"):
        pass_key.last_start(64)


def test_the_loss_of_tuning_counts_the_digits_that_can_be_known() -> None:
    model = build(SMOKE, LANDMARK, nnx.Rngs(0))
    windows, starts = pass_key.sample(jnp.arange(1000, dtype=jnp.uint8) % 100, 120, 3, jax.random.key(1))
    total, bits = nnx.jit(pass_key.tuning_loss, static_argnums=0)(SMOKE.block, model, (windows, starts))
    tokens = insert_landmarks(windows, SMOKE.block, LANDMARK_ID)
    log_p = np.asarray(nnx.jit(lambda model: jax.nn.log_softmax(model(tokens)))(model))
    nats, again, answer = [], [], []
    for row, (window, start) in enumerate(zip(np.asarray(windows), np.asarray(starts), strict=True)):
        # The place of every byte among tokens and landmarks, counted.
        place = np.flatnonzero(np.asarray(tokens[row]) != LANDMARK_ID)
        each = [-log_p[row, place[i] - 1, window[i]] for i in range(1, 121)]
        second = written(window).index(b"Remember it. ") + len("Remember it. ")
        nats.append(each)
        again.append(each[second - 1 : second + 4])
        answer.append(each[-5:])
        assert second == start + pass_key.AGAIN
    np.testing.assert_allclose(bits["again"], np.mean(again) / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(bits["answer"], np.mean(answer) / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(total, np.mean(nats) + np.mean(again) + np.mean(answer), rtol=1e-5)


def test_digits_are_right_where_they_are_the_most_likely_of_one_pass() -> None:
    """With all blocks retrieved chunks are one pass; some digits of the answers are made to be right."""
    config = replace(SMOKE, top_k=(40,), length=256, long_length=512)
    model = build(config, LANDMARK, nnx.Rngs(0))
    have = nnx.jit(lambda model, windows: read_in_chunks(config, 40, model, windows, BY_LANDMARKS)[1][:, -5:])

    @nnx.jit
    def likely(model: nnx.Module, windows: jax.Array) -> jax.Array:
        tokens = model(insert_landmarks(windows, config.block, LANDMARK_ID)[:, :-1]).argmax(axis=-1)
        return strip_landmarks(jnp.pad(tokens, [(0, 0), (1, 0)]), config.block)[:, -5:]

    keys = jnp.asarray([[1, 7, 7, 0, 9], [7, 2, 7, 7, 7], [3, 1, 4, 1, 5]])
    windows = pass_key.with_pass_key(jnp.full((3, 121), FILLER), keys, jnp.asarray([0, 5, 19]))
    assert not have(model, windows).any()
    for place in (0, 3):  # one after the other, as what is likely depends on what stands before
        windows = windows.at[:, place - 5].set(likely(model, windows)[:, place])
    right = have(model, windows)
    np.testing.assert_array_equal(right, likely(model, windows) == windows[:, -5:])
    assert right[:, [0, 3]].all()
    assert not right.all()


def settled(path: Path, wrong: int, local: float) -> dict[str, bool]:
    """Whether claims hold if one digit is wrong in so many of 10 windows, and that share is right without retrieval."""
    right = np.ones((3, 10, 5), bool)
    right[:, :wrong, 2] = False
    alone = np.zeros((3, 10, 5), bool)
    alone[:, :, : round(5 * local)] = True
    with open_run(EXPERIMENT, "smoke", SMOKE, path, quiet=True) as run:
        claims.settle_pass_key(run, {"retrieved, 128 bytes": right, "local": alone}, 128)
        return {verdict.claim.name: verdict.held for verdict in run.verdicts}


@pytest.mark.parametrize(
    ("wrong", "local", "want"), [(0, 0.0, (True, True)), (4, 0.0, (False, True)), (0, 0.4, (True, False))]
)
def test_claims_on_planted_answers(tmp_path: Path, wrong: int, local: float, want: tuple[bool, bool]) -> None:
    assert tuple(settled(tmp_path / "run", wrong, local).values()) == want


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"windows": 0}, "pass_key.windows must be at least 1; got 0"),
        ({"lengths": (300, 200)}, r"pass_key.lengths must rise; got \(300, 200\)"),
    ],
)
def test_bad_settings_are_named(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(PassKey(), **change)
