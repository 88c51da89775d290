"""Finding, filtering and summing up runs."""

import json
import os
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jattn.runs import Bar, Claim, Experiment, Preset, RunError, open_run
from jattn.runs.index import find_run, last_metrics, list_runs, summarise
from jattn.runs.metrics import MetricRecord


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Config:
    width: int = 4
    lengths: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    note: str | None = None


CLAIM = Claim("first", "The loss is small.", "0.5", Bar(high=1.0), "an untrained model")


def make_run(directory: Path, name: str, at: str, config: Config = Config(), loss: float | None = None) -> None:
    """A run that settled its claim when it was given a loss, and failed when not."""
    experiment = Experiment(name, "a toy", None, {"smoke": Preset(config, "seconds")}, lambda config, run: None)
    with suppress(ZeroDivisionError), open_run(experiment, "smoke", config, directory, quiet=True) as run:
        if loss is None:
            raise ZeroDivisionError("nothing to measure")
        run.settle(CLAIM, loss, 2.0)
    status = json.loads((directory / "status.json").read_text())
    (directory / "status.json").write_text(json.dumps(status | {"at": at}))


@pytest.fixture
def root(tmp_path) -> Path:
    """Three runs, oldest to newest b, c, a; and things that are no runs."""
    make_run(tmp_path / "20250101-a-linear", "linear", "2025-01-03T00:00:00+00:00", Config(width=8), loss=0.5)
    make_run(tmp_path / "20250101-b-linear", "linear", "2025-01-01T00:00:00+00:00", loss=3.0)
    make_run(tmp_path / "20250102-c-logistic", "logistic", "2025-01-02T00:00:00+00:00")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def names(runs) -> list[str]:
    return [run.directory.name.split("-")[1] for run in runs]


def test_a_run_is_summed_up(root):
    summary = summarise(root / "20250101-a-linear")
    assert (summary.experiment, summary.preset, summary.status, summary.held) == ("linear", "smoke", "completed", "1/1")
    assert summary.config == {"width": 8, "lengths": [1, 2], "inner": {"rate": 0.1}, "note": None}
    assert [verdict.claim for verdict in summary.verdicts] == [CLAIM]
    assert summarise(root / "20250101-b-linear").held == "0/1"
    failed = summarise(root / "20250102-c-logistic")
    assert (failed.status, failed.detail, failed.held) == ("failed", "ZeroDivisionError: nothing to measure", "")


def test_a_directory_without_a_run_is_told(root):
    with pytest.raises(RunError, match=rf"{root / 'empty'} holds no run"):
        summarise(root / "empty")


def test_runs_are_listed_newest_last(root):
    assert names(list_runs(root)) == ["b", "c", "a"]
    assert list_runs(root / "nowhere") == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["experiment=linear"], ["b", "a"]),
        (["status=failed"], ["c"]),
        (["preset=smoke"], ["b", "c", "a"]),
        (["width=8"], ["a"]),
        (["width=4"], ["b", "c"]),
        (["inner.rate=0.1", "experiment=logistic"], ["c"]),
        (["lengths=1,2"], ["b", "c", "a"]),
        (["lengths=[1, 2]"], ["b", "c", "a"]),
        (["lengths=1"], []),
        (["note=None"], ["b", "c", "a"]),
        (["nonsense=1"], []),
        (["width=8", "status=failed"], []),
    ],
)
def test_runs_are_filtered_by_every_filter(root, filters, expected):
    assert names(list_runs(root, filters)) == expected


def test_a_filter_has_a_value(root):
    with pytest.raises(ValueError, match="filter must be field=value; got 'width'"):
        list_runs(root, ["width"])


def test_a_run_is_found_by_path_name_part_or_as_the_latest(root, monkeypatch):
    a = root / "20250101-a-linear"
    assert find_run(str(a), Path("elsewhere")) == a
    assert find_run(a.name, root) == a
    assert find_run("a-lin", root) == a
    assert find_run("latest", root) == a
    assert find_run("logistic", root) == root / "20250102-c-logistic"
    monkeypatch.chdir(root)
    assert find_run(a.name, Path("elsewhere")) == a
    assert find_run(os.curdir + os.sep + a.name, Path("elsewhere")) == a


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("linear", "'linear' matches more than one run; under .* there are: .*b-linear, .*c-logistic, .*a-linear"),
        ("nonsense", "'nonsense' is no run; under .* there are: .*b-linear"),
        ("empty", "'empty' is no run"),
    ],
)
def test_a_name_that_fits_none_or_several_lists_what_there_is(root, name, said):
    with pytest.raises(RunError, match=said):
        find_run(name, root)


def test_latest_of_none(tmp_path):
    with pytest.raises(RunError, match=r"'latest' is no run; under .* there are: none yet"):
        find_run("latest", tmp_path)


def test_the_last_value_of_every_metric(tmp_path):
    rows = {
        "one": [(0, {"eval/error": 9.0}), (5, {"loss": np.array([1.0, 2.0])}), (10, {"loss": np.array([0.5, 0.25])})],
        "two": [(3, {"loss": 7.0})],
    }
    for stage, lines in rows.items():
        with closing(MetricRecord(tmp_path / "metrics" / f"{stage}.jsonl", stage)) as record:
            for step, metrics in lines:
                record.write(step, metrics)
    last = last_metrics(tmp_path)
    assert last["one"]["eval/error"] == (0, 9.0)
    assert last["one"]["loss"][0] == 10
    assert last["one"]["loss"][1].tolist() == [0.5, 0.25]
    assert last["two"] == {"loss": (3, 7.0)}
    assert last_metrics(tmp_path / "nowhere") == {}
