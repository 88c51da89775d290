"""The training loop against itself: stopped, crashed, resumed."""

import json
import logging
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import optax
import pytest
from toys import (
    DATA,
    KEY,
    At,
    Plain,
    assert_same_bits,
    crash_at,
    evaluate,
    newest_checkpoint,
    sample,
    squared_error,
    stop_at,
    toy_run,
    train_toy,
)

from jattn.runs import Best, Stopped
from jattn.runs.metrics import read_metrics
from jattn.train import Generated, Schedule, fit


@pytest.fixture(scope="module", params=list(DATA))
def uninterrupted(request, tmp_path_factory):
    """A run nobody touched: the kind of its data, its last state and its directory."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with toy_run(directory) as run:
        state = train_toy(run, request.param).state
    return request.param, state, directory


def assert_same_record(one: Path, other: Path) -> None:
    record = (one / "metrics" / "stage.jsonl").read_bytes()
    assert record.count(b"\n") == 6 + 4  # dispatches and evaluations
    assert record == (other / "metrics" / "stage.jsonl").read_bytes()


def test_a_run_stopped_twice_and_resumed_is_the_run_never_stopped(uninterrupted, tmp_path, caplog):
    data, state, whole = uninterrupted
    directory = tmp_path / "run"
    for step in (10, 25):
        stop_at(directory, step, lambda run: train_toy(run, data))
        assert newest_checkpoint(directory) == step, "the moment of stopping is checkpointed"
        assert json.loads((directory / "status.json").read_text())["status"] == "stopped"
    with caplog.at_level(logging.INFO, "jattn"), toy_run(directory) as run:
        resumed = train_toy(run, data).state
    assert "going on from the checkpoint of step 25" in caplog.text
    assert_same_bits(resumed, state)
    assert_same_record(directory, whole)


def test_a_run_crashed_twice_and_resumed_is_the_run_never_crashed(uninterrupted, tmp_path, caplog):
    data, state, whole = uninterrupted
    directory = tmp_path / "run"
    for step, resumes_from in ((10, 0), (25, 20)):
        crash_at(directory, step, lambda run: train_toy(run, data))
        # What was recorded after the checkpoint is forgotten when it is resumed.
        assert read_metrics(directory / "metrics" / "stage.jsonl")["loss"][0][-1] == step
        assert (newest_checkpoint(directory) if resumes_from else 0) == resumes_from
        with open(directory / "metrics" / "stage.jsonl", "ab") as file:
            file.write(b'{"step":')  # the line under way
    with caplog.at_level(logging.INFO, "jattn"), toy_run(directory) as run:
        resumed = train_toy(run, data).state
    assert "going on from the checkpoint of step 20" in caplog.text
    assert_same_bits(resumed, state)
    assert_same_record(directory, whole)


def test_a_finished_stage_is_read_back_not_trained_again(uninterrupted, tmp_path):
    data, state, whole = uninterrupted
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    with toy_run(directory, [At(0, lambda: pytest.fail("trained or evaluated again"))]) as run:
        again = train_toy(run, data).state
    assert_same_bits(again, state)
    assert_same_record(directory, whole)


def test_a_signal_between_any_two_looks_is_checkpointed(tmp_path):
    """The loop may ask several times whether to stop; wherever the signal falls between, the last step is saved."""

    class Falls:
        signal = int(signal.SIGTERM)

        def __init__(self, look: int):
            self.left = look

        def __bool__(self) -> bool:
            self.left -= 1
            return self.left < 0

    stopped = []
    for look in range(5):
        directory = tmp_path / f"run-{look}"
        with suppress(Stopped), toy_run(directory) as run:
            run.stop_request = Falls(look)
            train_toy(run, build=Plain, seeds=None, steps=15)
        record = read_metrics(directory / "metrics" / "stage.jsonl")["loss"][0]
        assert newest_checkpoint(directory) == record[-1]
        stopped.append(int(record[-1]))
    assert len(set(stopped)) > 2


def test_a_spoiled_newest_checkpoint_costs_only_work(uninterrupted, tmp_path, caplog):
    data, state, whole = uninterrupted
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    newest = directory / "checkpoints" / "stage" / "28"
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-3])
    with caplog.at_level(logging.INFO, "jattn"), toy_run(directory) as run:
        resumed = train_toy(run, data).state
    assert f"{newest} does not match its digest; the one before it is used" in caplog.text
    assert caplog.text.count("going on from the checkpoint of step 20") == 1
    assert_same_bits(resumed, state)
    assert_same_record(directory, whole)


def test_the_best_checkpoint_stays(tmp_path):
    """The error of a model driven away from its optimum rises, so the first evaluated checkpoint is the best."""
    with toy_run(tmp_path / "run") as run:
        fit(
            run, "stage", build=Plain, loss=lambda model, batch: (-squared_error(model, batch)[0], {}),
            optimiser=optax.sgd(0.05), data=Generated(sample), key=KEY, evaluate=evaluate,
            schedule=Schedule(30, 5, 5, 5, keep=1, best=Best("eval/error")),
        )  # fmt: skip
        steps, error = run.history("stage")["eval/error"]
    assert steps[1:][error[1:].argmin()] == 5
    kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints" / "stage").iterdir() if p.name.isdigit())
    assert kept == [5, 30]
