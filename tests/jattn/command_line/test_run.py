"""`jattn run` and `jattn resume` in this process: what they do, refuse and exit with."""

import json
import re
import sys
from datetime import datetime
from pathlib import Path

import pytest
from ladder import LADDER, Shell, contents, only_run

from jattn import cli


def test_run_leaves_a_completed_run(jattn: Shell, ladder: Path) -> None:
    result = jattn("run", "ladder.py")
    assert result.status == 0
    run = only_run()
    assert re.fullmatch(r"\d{8}-\d{6}-ladder-laptop", run.name)
    assert contents(run / "status.json")["status"] == "completed"
    assert [row["held"] for row in contents(run / "claims.json")] == [True, False]
    assert (run / "metrics" / "climb.jsonl").read_text().count("\n") == 3
    assert (run / "figures" / "ladder.svg").read_text().startswith("<?xml")
    assert list((run / "tensorboard" / "climb").iterdir())
    assert contents(run / "config.json")["experiment"] == str(ladder / "ladder.py")
    assert f"(laptop) in runs/{run.name}\n" in result.out
    assert "held      rises: height | rung\n" in re.sub(" +\n", "\n", result.out)
    assert "measured 2.1 [1.852, 2.348], bar ≥ 1" in result.out
    assert "a ladder of [no] rungs" in result.out
    assert "NOT HELD  falls: a bent ladder leans" in result.out
    assert "the measurement misses the bar; it is straight" in result.out
    assert "1 of 2 claims held. Not held: falls.\n" in result.out
    assert f"jattn report runs/{run.name}\n" in result.out
    assert result.err == ""


def test_options_reach_the_config(jattn: Shell, ladder: Path) -> None:
    options = "--steps 4 --rate -0.25 --loud --lengths 1 2 3 --shape bent --wall.lean 0.3 --dir here --quiet --track"
    assert jattn("run", "ladder.py", *options.split()).status == 0
    expected = {"steps": 4, "rate": -0.25, "loud": True, "lengths": [1, 2, 3], "shape": "bent", "wall": {"lean": 0.3}}
    types = {"steps": "int", "rate": "float", "loud": "bool", "lengths": "tuple", "shape": "str", "wall": "Wall"}
    assert contents(Path("here/config.json"))["config"] == expected
    assert contents(Path("here/results.json")) == {name: [types[name], expected[name]] for name in expected}
    assert not Path("here/tensorboard").exists()  # --track without a name
    assert not Path("runs").exists()


def test_a_preset_is_what_options_change(jattn: Shell, ladder: Path) -> None:
    assert jattn("run", "--preset", "smoke", "--root", "elsewhere", "ladder.py", "--rate", "2").status == 0
    run = only_run(Path("elsewhere"))
    assert run.name.endswith("-ladder-smoke")
    config = contents(run / "config.json")
    assert config["preset"] == "smoke"
    expected = {"steps": 2, "rate": 2.0, "loud": False, "lengths": [10, 20], "shape": "straight", "wall": {"lean": 0.2}}
    assert config["config"] == expected


@pytest.mark.parametrize(
    ("options", "status"), [([], 0), (["--strict"], 1), (["--strict", "--shape", "bent"], 0), (["--shape", "bent"], 0)]
)
def test_strict_is_about_claims(jattn: Shell, ladder: Path, options: list[str], status: int) -> None:
    assert jattn("run", "ladder.py", "--steps", "1", *options).status == status
    held = [row["held"] for row in contents(only_run() / "claims.json")]
    assert held == [True, "bent" in options]


def test_runs_begun_in_the_same_second_have_their_own_directories(
    jattn: Shell, ladder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None) -> datetime:
            return datetime(2025, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(cli, "datetime", Stopped)
    for steps in ("1", "1", "2"):
        assert jattn("run", "ladder.py", "--preset", "smoke", "--steps", steps).status == 0
    worked = {path.name: (path / "worked").read_text() for path in Path("runs").iterdir()}
    assert worked == {
        "20250102-030405-ladder-smoke": "0 ",
        "20250102-030405.2-ladder-smoke": "0 ",
        "20250102-030405.3-ladder-smoke": "0 1 ",
    }


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--stps", "3"], ["Unrecognized options: --stps", "--steps"]),
        (["--steps", "x"], ["--steps", "invalid literal for int", "'x'"]),
        (["--rate", "fast"], ["--rate", "'fast'"]),
        (["--lengths", "1", "two"], ["--lengths", "'two'"]),
        (["--shape", "round"], ["'round'", "--shape", "straight", "bent"]),
        (["--loud", "yes"], ["Unrecognized", "yes"]),
        (["--steps", "0"], ["steps must be at least 1; got 0"]),
        (["--preset", "lapto"], ["preset must be one of smoke, laptop; got 'lapto'"]),
        (["--preset"], ["--preset: expected one argument"]),
        (["--track", "paper"], ["--track: invalid choice: 'paper'"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_wrong_options_are_refused(jattn: Shell, ladder: Path, options: list[str], messages: list[str]) -> None:
    result = jattn("run", "ladder.py", *options)
    assert result.status == 2
    assert result.out == ""
    for message in messages:
        assert message in result.err
    assert "Traceback" not in result.err
    assert [path.name for path in ladder.iterdir() if path.name != "__pycache__"] == ["ladder.py"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in_context_regresion", "experiment 'in_context_regresion' is not known; did you mean in_context_regression?"),
        ("zzz", "experiment 'zzz' is not known; there are: attention_calibration, biformer, "),
        ("absent.py", "absent.py does not exist"),
        ("empty.py", "empty.py must define EXPERIMENT"),
    ],
)
def test_experiments_that_are_not_there(jattn: Shell, ladder: Path, name: str, message: str) -> None:
    Path("empty.py").write_text("")
    status, out, err = jattn("run", name)
    assert (status, out) == (2, "")
    assert message in err


def test_a_tracker_that_is_not_installed(jattn: Shell, ladder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, err = jattn("run", "ladder.py", "--track", "wandb")
    assert status == 2
    assert err.startswith("jattn: tracker wandb needs its package: pip install 'jattn[wandb]'")
    assert not list(Path().glob("runs/*/worked"))


def test_a_run_needs_an_experiment(jattn: Shell, ladder: Path) -> None:
    status, out, err = jattn("run")
    assert (status, out) == (2, "")
    assert "the experiment is missing" in err


def test_a_file_that_cannot_be_imported_shows_where(jattn: Shell, ladder: Path) -> None:
    Path("broken.py").write_text("x = 1\ny = x / 0\n")
    status, out, err = jattn("run", "broken.py")
    assert (status, out) == (3, "")
    assert 'broken.py", line 2' in err
    assert "ZeroDivisionError" in err


def test_a_fault_of_the_experiment_shows_where_and_can_be_resumed(jattn: Shell, ladder: Path) -> None:
    Path("fail").touch()
    result = jattn("run", "ladder.py", "--dir", "run")
    assert result.status == 3
    assert re.search(r'ladder.py", line \d+, in run', result.err)
    assert "ValueError: a rung broke" in result.err
    assert "jattn resume run" in result.err
    assert contents(Path("run/status.json")) | {"at": ""} == {
        "status": "failed",
        "detail": "ValueError: a rung broke",
        "at": "",
    }
    Path("fail").unlink()
    assert jattn("resume", "run").status == 0
    assert contents(Path("run/status.json"))["status"] == "completed"


def test_a_directory_that_holds_something_else(jattn: Shell, finished: Path) -> None:
    status, _, err = jattn("run", "ladder.py", "--dir", "runs/short", "--steps", "7")
    assert status == 3
    assert "holds a run of another config" in err
    assert "steps: there 2, asked for 7" in err
    status, _, err = jattn("run", "ladder.py", "--dir", ".")
    assert status == 3
    assert "is not empty and holds no run; give a new directory" in err


def test_help_shows_the_config_fields(jattn: Shell, ladder: Path) -> None:
    general = jattn("run", "--help")
    assert (general.status, general.err) == (0, "")
    assert "--preset" in general.out
    assert "--strict" in general.out
    own = jattn("run", "ladder.py", "--preset", "smoke", "--help")
    assert (own.status, own.err) == (0, "")
    assert own.out.startswith(general.out)
    for text in ("How high a ladder goes.", "--steps INT", "how many rungs. (default: 2)", "--rate FLOAT", "--loud"):
        assert text in own.out
    for text in ("--lengths", "(default: 10 20)", "--shape {straight,bent}", "--wall.lean FLOAT"):
        assert text in own.out
    assert not Path("runs").exists()


def test_a_stopped_run_goes_on_where_it_was(jattn: Shell, finished: Path) -> None:
    Path("stop").touch()
    stopped = jattn("run", "ladder.py", "--dir", "runs/stopped", "--shape", "bent", "--wall.lean", "0.3")
    assert stopped.status == 128 + 15
    assert f"jattn resume {finished / 'runs/stopped'}" in stopped.out
    assert contents(Path("runs/stopped/status.json"))["status"] == "stopped"
    assert Path("runs/stopped/worked").read_text() == "0 1 "
    Path("stop").unlink()
    assert jattn("resume", "stopped", "--strict").status == 0
    assert Path("runs/stopped/worked").read_text() == "0 1 2 "
    for name in ("metrics/climb.jsonl", "claims.json", "results.json", "figures/ladder.svg"):
        assert Path("runs/stopped", name).read_bytes() == Path("runs/bent", name).read_bytes()


def test_resuming_a_completed_run_repeats_nothing(jattn: Shell, finished: Path) -> None:
    run = Path("runs/short")
    before = {name: (run / name).read_bytes() for name in ("worked", "metrics/climb.jsonl", "claims.json")}
    result = jattn("resume", "short")
    assert result.status == 0
    assert "ladder.py (smoke) in" in result.out
    assert "1 of 2 claims held." in result.out
    assert {name: (run / name).read_bytes() for name in before} == before
    assert contents(run / "status.json")["status"] == "completed"
    assert len(contents(run / "environment.json")) == 2
    assert jattn("resume", "short", "--strict").status == 1


def test_a_config_that_gained_a_field_is_refused(jattn: Shell, finished: Path) -> None:
    source = finished / "ladder.py"
    frozen = contents(finished / "runs/short/config.json")
    Path("runs/short/config.json").write_text(json.dumps(frozen | {"experiment": str(source)}))
    source.write_text(LADDER.replace("    steps: int = 3", "    wind: float = 0.1\n    steps: int = 3"))
    worked = Path("runs/short/worked").read_text()
    status, out, err = jattn("resume", "short")
    assert (status, out) == (3, "")
    assert err.rstrip().endswith("its config differs in wind")
    source.write_text(LADDER.replace("steps: int = 3", 'steps: Literal["many"] = "many"').replace("self.steps < 1", "0")
                      .replace("Config(steps=2)", "Config()"))  # fmt: skip
    status, out, err = jattn("resume", "short")
    assert (status, out) == (3, "")
    assert "config.json does not fit" in err
    assert "steps" in err
    assert Path("runs/short/worked").read_text() == worked


@pytest.mark.parametrize("command", ["show", "resume", "compare", "report"])
def test_runs_that_are_not_there(jattn: Shell, finished: Path, command: str) -> None:
    status, out, err = jattn(command, "nope")
    assert (status, out) == (3, "")
    assert err == "jattn: 'nope' is no run; under runs there are: short, bent\n"
    assert not Path("report.html").exists()


def test_a_part_of_a_name_must_fit_one_run(jattn: Shell, finished: Path) -> None:
    assert jattn("show", "en").out.startswith(f"{finished / 'runs/bent'}\n")
    assert jattn("show", "latest").out.startswith(f"{finished / 'runs/bent'}\n")
    assert jattn("show", str(finished / "runs/short")).out.startswith(f"{finished / 'runs/short'}\n")
    status, out, err = jattn("show", "t")
    assert (status, out) == (3, "")
    assert "'t' matches more than one run" in err


def test_a_config_field_named_like_an_option_of_run_is_refused(jattn: Shell, tmp_path: Path) -> None:
    path = tmp_path / "clash.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from jattn.runs import Experiment, Preset\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
        "    strict: int = 1\n"
        "EXPERIMENT = Experiment('clash', '', None, {'laptop': Preset(Config(), '')}, lambda config, run: None)\n"
    )
    result = jattn("run", str(path))
    assert result.status == 2
    assert "['strict']" in result.err
