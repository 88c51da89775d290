"""The run directory: one owner, a frozen config, a truthful status, and files that are whole or absent."""

import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import EXPERIMENT, Config, Optimiser, toy_run, tree

import jattn.runs.directory
import jattn.runs.lock
from jattn.runs import CheckpointError, Run, RunError, Stopped
from jattn.runs.directory import read_status
from jattn.runs.lock import DirectoryLock, is_locked


def status_of(directory: Path) -> str:
    return json.loads((directory / "status.json").read_text())["status"]


@contextmanager
def owner_in_another_process(directory: Path) -> Iterator[subprocess.Popen]:
    """A live process that holds the directory, by the very code a run holds it with."""
    directory.mkdir(parents=True, exist_ok=True)
    program = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('lock', {jattn.runs.lock.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        f"held = module.DirectoryLock(pathlib.Path({str(directory / 'lock')!r}))\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


# One owner ----------------------------------------------------------------------------------------------------------


def test_a_directory_in_use_is_refused_with_its_owner(tmp_path):
    with toy_run(tmp_path / "run"):
        pass
    before = {name: (tmp_path / "run" / name).read_bytes() for name in tree(tmp_path / "run")}
    with owner_in_another_process(tmp_path / "run") as owner:
        with (
            pytest.raises(RunError, match=rf"{tmp_path / 'run'} is in use by process {owner.pid}$"),
            toy_run(tmp_path / "run"),
        ):
            pytest.fail("opened a directory that is in use")
        owner.kill()  # SIGKILL: the lock goes with the process, nobody has to clean up
        owner.wait()
    after = {name: (tmp_path / "run" / name).read_bytes() for name in tree(tmp_path / "run")}
    assert {name for name in after if after[name] != before.get(name)} <= {"lock"}, "the refused process wrote nothing"
    with toy_run(tmp_path / "run"):
        assert status_of(tmp_path / "run") == "running"
    assert status_of(tmp_path / "run") == "completed"


def test_a_run_refuses_a_second_opening_by_its_own_process(tmp_path):
    with toy_run(tmp_path / "run"):
        with pytest.raises(RunError, match="in use by process"), toy_run(tmp_path / "run"):
            pytest.fail("opened twice")
        assert is_locked(tmp_path / "run" / "lock")
    assert not is_locked(tmp_path / "run" / "lock")


def test_looking_whether_a_run_is_alive_never_gets_in_its_way(tmp_path):
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_locked(tmp_path / "lock")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(100):
            DirectoryLock(tmp_path / "lock").release()
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_nothing_that_was_never_locked_is_locked(tmp_path):
    assert not is_locked(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


# Config and environment ----------------------------------------------------------------------------------------------


def test_the_config_is_frozen(tmp_path):
    with toy_run(tmp_path / "new" / "run"):
        pass
    frozen = json.loads((tmp_path / "new" / "run" / "config.json").read_text())
    assert frozen == {
        "experiment": "toy",
        "preset": "smoke",
        "config": {"heads": [1, 2], "optimiser": {"rate": 0.1}},
    }
    with toy_run(tmp_path / "new" / "run"):  # the same again is welcome
        pass


def test_another_config_is_refused_with_the_fields_that_differ(tmp_path):
    with toy_run(tmp_path / "run"):
        pass
    before = (tmp_path / "run" / "config.json").read_bytes()
    other = Config(heads=(1, 3), optimiser=Optimiser(rate=0.2))
    said = (
        r"holds a run of another config:\n"
        r"  heads: there \[1, 2\], asked for \[1, 3\]\n"
        r"  optimiser\.rate: there 0\.1, asked for 0\.2$"
    )
    with pytest.raises(RunError, match=said), toy_run(tmp_path / "run", other):
        pytest.fail("opened another config's run")
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    assert status_of(tmp_path / "run") == "completed", "the refused run leaves the status alone"
    assert not is_locked(tmp_path / "run" / "lock")


def test_another_experiment_is_refused(tmp_path):
    with toy_run(tmp_path / "run"):
        pass
    with (
        pytest.raises(RunError, match=r"experiment: there 'toy', asked for 'other'$"),
        toy_run(tmp_path / "run", experiment=replace(EXPERIMENT, name="other")),
    ):
        pytest.fail("opened another experiment's run")


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {".hidden": "mine"}, {"lock": "", "notes.txt": "mine"}])
def test_a_directory_of_something_else_is_refused_and_untouched(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with (
        pytest.raises(RunError, match=f"{tmp_path} is not empty and holds no run; give a new directory"),
        toy_run(tmp_path),
    ):
        pytest.fail("took a directory of something else")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


@pytest.mark.parametrize("config", ['{"name": "a web page", "version": 2}', "[1, 2]", "{"])
def test_a_config_of_something_else_is_refused_and_untouched(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(RunError, match=r"holds no run|is not readable"), toy_run(tmp_path):
        pytest.fail("took a directory of something else")
    assert (tmp_path / "config.json").read_text() == config
    assert not (tmp_path / "status.json").exists()


def test_a_run_killed_before_its_config_was_whole_can_be_begun_again(tmp_path):
    (tmp_path / "lock").write_text("123\n")
    (tmp_path / ".config.json.123").write_text('{"experi')
    with toy_run(tmp_path):
        pass
    assert status_of(tmp_path) == "completed"


def test_the_environment_of_every_process_is_kept(tmp_path, caplog):
    for _ in range(2):
        with toy_run(tmp_path / "run"):
            pass
    sessions = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(sessions) == 2
    assert sessions[0]["packages"]["jax"]
    assert sessions[0]["devices"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_changed_environment_is_told(tmp_path, caplog, monkeypatch):
    with toy_run(tmp_path / "run"):
        pass
    as_it_is = jattn.runs.directory.record_environment()
    changed = as_it_is | {"packages": as_it_is["packages"] | {"jax": "9.9"}, "command": ["something", "else"]}
    monkeypatch.setattr(jattn.runs.directory, "record_environment", lambda: changed)
    with toy_run(tmp_path / "run"):
        pass
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"packages.jax: before '{as_it_is['packages']['jax']}', now '9.9'" in warning
    assert "else" not in warning, "how it was called does not change the numbers"


# Status --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (None, "completed", ""),
        (ValueError("boom"), "failed", "ValueError: boom"),
        (SystemExit(3), "failed", "SystemExit: 3"),
        (Stopped("stopped on request"), "stopped", "stopped on request"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
    ],
)
def test_the_status_says_how_a_run_ended(tmp_path, error, status, detail):
    with nullcontext() if error is None else pytest.raises(type(error)), toy_run(tmp_path / "run"):
        assert read_status(tmp_path / "run")["status"] == "running"
        if error is not None:
            raise error
    got = read_status(tmp_path / "run")
    assert (got["status"], got["detail"]) == (status, detail)
    assert not is_locked(tmp_path / "run" / "lock")


def test_a_run_that_says_it_runs_and_that_nobody_holds_was_killed(tmp_path):
    with toy_run(tmp_path / "run"):
        running = (tmp_path / "run" / "status.json").read_bytes()
    (tmp_path / "run" / "status.json").write_bytes(running)
    with owner_in_another_process(tmp_path / "run"):
        assert read_status(tmp_path / "run")["status"] == "running"
    assert read_status(tmp_path / "run")["status"] == "killed"


def test_no_status_is_unknown(tmp_path):
    assert read_status(tmp_path)["status"] == "unknown"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_once_and_insists_the_second_time(tmp_path, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def heed(run: Run) -> None:
        run.stop_if_asked()
        assert not run.stop_request
        signal.raise_signal(number)
        assert run.stop_request
        assert run.stop_request.signal == number
        run.stop_if_asked()

    def ignore(run: Run) -> None:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)

    for work, raised in ((heed, Stopped), (ignore, KeyboardInterrupt)):
        with pytest.raises(raised), toy_run(tmp_path / "run") as run:
            work(run)
        assert status_of(tmp_path / "run") == "stopped"
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_full_disk_does_not_hide_what_went_wrong(tmp_path, file_size_limit):
    def fail() -> None:
        with ExitStack() as full, toy_run(tmp_path / "run"):
            full.enter_context(file_size_limit(10))  # until the run is closed
            raise CheckpointError("could not save")

    with pytest.raises(CheckpointError, match="could not save"):
        fail()
    assert read_status(tmp_path / "run")["status"] == "killed", "nothing could be written"
    assert not is_locked(tmp_path / "run" / "lock")


def test_a_metric_that_cannot_be_written_stops_the_run_and_what_is_saved_stays(tmp_path, file_size_limit):
    def train(run: Run, steps: int) -> int:
        with run.stage("stage") as stage:
            restored = stage.restore({"x": jnp.zeros(3)})
            first = 1 if restored is None else restored.step + 1
            for step in range(first, steps + 1):
                stage.metrics.write(step, {"loss": np.full(20, step, np.float32)})
                stage.save(step, {"x": jnp.full(3, float(step))}, None, {})
                stage.wait()
            return first

    with toy_run(tmp_path / "whole") as run:
        train(run, 4)
    record = (tmp_path / "whole" / "metrics" / "stage.jsonl").read_bytes()

    def fill() -> None:
        with ExitStack() as full, toy_run(tmp_path / "run") as run:
            train(run, 2)
            full.enter_context(file_size_limit(len(record) * 5 // 8))  # room for two and a half of the four lines
            train(run, 4)

    with pytest.raises(OSError, match=r"File too large: '.*/metrics/stage\.jsonl'"):
        fill()
    assert (tmp_path / "run" / "metrics" / "stage.jsonl").stat().st_size > len(record) // 2, "a part was written"
    with toy_run(tmp_path / "run") as run:
        assert train(run, 4) == 3
    assert (tmp_path / "run" / "metrics" / "stage.jsonl").read_bytes() == record


def test_a_record_that_lost_lines_is_refused(tmp_path):
    def train(run) -> None:
        with run.stage("stage") as stage:
            if stage.restore({"x": jnp.zeros(3)}) is None:
                stage.metrics.write(1, {"loss": 1.0})
                stage.save(1, {"x": jnp.zeros(3)}, None, {})

    with toy_run(tmp_path / "run") as run:
        train(run)
    (tmp_path / "run" / "metrics" / "stage.jsonl").unlink()
    with (
        pytest.raises(RunError, match=r"stage stage cannot go on: .*stage\.jsonl must hold at least \d+ bytes"),
        toy_run(tmp_path / "run") as run,
    ):
        train(run)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "a.b"])
def test_a_stage_is_named_like_a_directory(tmp_path, name):
    with (
        pytest.raises(ValueError, match="name of a stage must be letters, digits, - and _; got "),
        toy_run(tmp_path / "run") as run,
        run.stage(name),
    ):
        pytest.fail("opened")
