"""A place with that experiment, and with finished runs of it."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ladder import LADDER, Shell, contents

from jattn import cli


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal of 120 columns; the package's logger as it was."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(cli.console, "width", 120)
    log = logging.getLogger("jattn")
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, level, log.propagate = before
    log.setLevel(level)


@pytest.fixture
def jattn(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where we are: a directory with nothing but `ladder.py`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ladder.py").write_text(LADDER)
    return tmp_path


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ladder.py` and two finished runs of it."""
    here = tmp_path_factory.mktemp("two")
    (here / "ladder.py").write_text(LADDER)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(here)
        assert cli.main(["run", "ladder.py", "--dir", "runs/short", "--preset", "smoke", "--lengths", "1", "2"]) == 0
        assert cli.main(["run", "ladder.py", "--dir", "runs/bent", "--shape", "bent", "--wall.lean", "0.3"]) == 0
    status = here / "runs/short/status.json"  # times are kept in seconds, and both runs may end in the same one
    status.write_text(json.dumps(contents(status) | {"at": "2025-01-02T03:04:05+00:00"}))
    return here


@pytest.fixture
def finished(two_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where we are: a copy of those two runs."""
    shutil.copytree(two_runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
