"""The command line in this process, on a small experiment of the user's own: what it does, prints and exits with."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from jattn import cli
from jattn.runs import discover

LADDER = '''
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
from matplotlib.figure import Figure

from jattn.runs import Bar, Claim, Experiment, Preset


@dataclass(frozen=True)
class Wall:
    """What it leans on.

    Attributes:
      lean: by how much.
    """

    lean: float = 0.2


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      steps: how many rungs.
      rate: how far apart they are.
      loud: whether to say so.
      lengths: where to measure.
      shape: straight or bent.
      wall: what it leans on.
    """

    steps: int = 3
    rate: float = 0.5
    loud: bool = False
    lengths: tuple[int, ...] = (10, 20)
    shape: Literal["straight", "bent"] = "straight"
    wall: Wall = Wall()

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")


RISES = Claim("rises", "height | rung", "figure 2", Bar(low=1.0), "a ladder of [no] rungs")
FALLS = Claim("falls", "a bent ladder leans", "section 4", Bar(low=0.0), "a wall")


def run(config, run):
    with run.stage("climb") as stage:
        restored = stage.restore({"height": jnp.zeros(())})
        for step in range(restored.step if restored else 0, config.steps):
            with open(run.directory / "worked", "a") as worked:
                worked.write(f"{step} ")
            height = config.rate * (step + 1)
            stage.metrics.write(step, {"height": [height, height + 1], "circuit": [[1.0, 2.0]]})
            stage.save(step + 1, {"height": jnp.float32(height)}, None, {})
            if Path("fail").exists():
                raise ValueError("a rung broke")
            if step == 1 and Path("stop").exists():
                os.kill(os.getpid(), signal.SIGTERM)
            run.stop_if_asked()
    run.save_results({name: [type(getattr(config, name)).__name__, value] for name, value in asdict(config).items()})
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot(range(config.steps))
    run.figure("ladder", figure, "Height by rung.")
    run.settle(RISES, [2.0, 2.1, 2.2], [0.0, 0.1, 0.05])
    run.settle(FALLS, 1.0 if config.shape == "bent" else -1.0, -2.0, finding="it is straight")


PRESETS = {"smoke": Preset(Config(steps=2), "an instant"), "laptop": Preset(Config(), "a moment")}
EXPERIMENT = Experiment("ladder", "How high a ladder goes.", None, PRESETS, run)
'''


class Result(NamedTuple):
    status: int
    out: str
    err: str


@dataclass
class Shell:
    """Runs `jattn ARGUMENTS` in this process."""

    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Result:
        self.capture.readouterr()
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
        assert isinstance(status, int)
        return Result(status, *self.capture.readouterr())


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


def contents(path: Path) -> dict:
    return json.loads(path.read_text())


def only_run(root: Path = Path("runs")) -> Path:
    (run,) = root.iterdir()
    return run


# run


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
        ("zzz", "experiment 'zzz' is not known; there are: in_context_regression"),
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


# resume


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


# what is printed


def test_list_names_every_experiment_preset_and_cost(jattn: Shell) -> None:
    status, out, err = jattn("list")
    assert (status, err) == (0, "")
    flat = " ".join(out.split())
    experiments = discover()
    assert "in_context_regression" in experiments
    for name, experiment in experiments.items():
        assert f"{name}: {experiment.summary}" in flat
        assert experiment.paper is None or experiment.paper.arxiv in flat
        for preset, choice in experiment.presets.items():
            default = " (default)" if preset == experiment.default_preset else ""
            assert f"--preset {preset}{default} {choice.cost}" in flat


def test_show(jattn: Shell, finished: Path) -> None:
    status, out, err = jattn("show", "short")
    assert (status, err) == (0, "")
    flat = " ".join(out.split())
    assert "status completed" in flat
    assert "config steps = 2 rate = 0.5 loud = False lengths = [1, 2] shape = straight wall = {'lean': 0.2}" in flat
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}." in flat
    assert "held rises: height | rung" in flat
    assert "NOT HELD falls" in flat
    assert "climb height 1.5 at step 1" in flat  # the mean of 1 and 2 in the second step
    assert "circuit" not in out  # a matrix is no number


def test_show_markdown_is_a_table_and_nothing_else(jattn: Shell, finished: Path) -> None:
    status, out, err = jattn("show", "short", "--markdown")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 4
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0] == ["claim", "paper", "bar", "measured", "control", "held"]
    assert cells[1] == ["---"] * 6
    measured, control = "2.1 [1.852, 2.348]", "0.05 [-0.07421, 0.1742] (a ladder of [no] rungs)"
    assert cells[2] == [r"rises: height \| rung", "figure 2", "≥ 1", measured, control, "held"]
    assert cells[3][5] == "**not held**: the measurement misses the bar; it is straight"


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ([], ["short", "bent"]),
        (["preset=smoke"], ["short"]),
        (["status=completed"], ["short", "bent"]),
        (["status=failed"], []),
        (["steps=3"], ["bent"]),
        (["lengths=1,2"], ["short"]),
        (["rate=0.5", "shape=bent"], ["bent"]),
        (["shape=bent", "preset=smoke"], []),
        (["wall.lean=0.3"], ["bent"]),
        (["colour=red"], []),
    ],
)
def test_runs_are_filtered(jattn: Shell, finished: Path, filters: list[str], names: list[str]) -> None:
    status, out, err = jattn("runs", *filters)
    assert (status, err) == (0, "")
    if not names:
        assert out == "There is no such run.\n"
        return
    header, *lines = out.splitlines()
    assert header.split() == ["run", "status", "claims", "last", "change"]
    assert [line.split()[0] for line in lines] == names
    rows = {"short": "short (ladder, smoke) completed 1/2", "bent": "bent (ladder, laptop) completed 2/2"}
    for name, line in zip(names, lines, strict=True):
        assert " ".join(line.split()).startswith(rows[name])


def test_a_filter_needs_a_value(jattn: Shell, finished: Path) -> None:
    status, out, err = jattn("runs", "smoke")
    assert (status, out) == (2, "")
    assert "filter must be field=value; got 'smoke'" in err


def test_compare_shows_where_runs_differ(jattn: Shell, finished: Path) -> None:
    status, out, err = jattn("compare", "short", "bent")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["lengths", "[1,", "2]", "[10,", "20]"] in rows
    assert ["shape", "straight", "bent"] in rows
    assert ["steps", "2", "3"] in rows
    assert ["wall.lean", "0.2", "0.3"] in rows
    assert not any(row and row[0] in ("rate", "loud") for row in rows)
    assert ["falls", "-1", "1"] in rows
    assert ["NOT", "HELD", "held"] in rows
    assert ["climb", "height", "1.5", "at", "step", "1", "2", "at", "step", "2"] in rows
    assert "The configs are the same." in jattn("compare", "bent", "bent").out


def test_report_holds_the_runs_asked_for(jattn: Shell, finished: Path) -> None:
    status, out, err = jattn("report", "short", "--out", "page/one.html")
    assert (status, out, err) == (0, "Wrote page/one.html\n", "")
    one = Path("page/one.html").read_text()
    assert "runs/short" in one or ">short<" in one
    assert ">bent<" not in one
    assert jattn("report").status == 0
    every = Path("report.html").read_text()
    assert len(every) > len(one)
    assert "Height by rung." in every


def test_report_of_nothing(jattn: Shell, ladder: Path) -> None:
    status, out, err = jattn("report")
    assert (status, out) == (3, "")
    assert err == "jattn: there is no run under runs to report on\n"


def test_doctor_says_what_there_is_and_how_to_get_the_rest(jattn: Shell) -> None:
    import jax
    import numpy as np

    status, out, err = jattn("doctor")
    assert (status, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["jax"] == ["jax", jax.__version__]
    assert rows["numpy"] == ["numpy", np.__version__]
    assert f"{jax.default_backend()}: {jax.device_count()} device" in out
    assert jax.default_backend() == "gpu" or "jattn[gpu]" in out or "plugin installed" in out
    try:
        import wandb  # noqa: F401
    except ImportError:
        assert "pip install 'jattn[wandb]'" in out


def unfolded(table: str, start: str) -> str:
    """The cell that starts so, its lines joined, with what stands below it."""
    lines = table.splitlines()
    row = next(number for number, line in enumerate(lines) if start in line)
    left = lines[row].index(start)
    right = lines[row].find("  ", left)
    return "".join(line[left : right if right >= 0 else None].strip() for line in lines[row:])


def test_no_name_is_cut_off_on_a_narrow_terminal(jattn: Shell, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "a-name-longer-than-the-terminal-is-wide-[with]-brackets"
    Path("runs/short").rename(Path("runs", long))
    monkeypatch.setattr(cli.console, "width", 45)
    assert long in unfolded(jattn("runs").out, "a-name")
    assert long in unfolded(jattn("compare", "a-name", "bent").out, "a-name")
    shown = jattn("show", "a-name").out
    assert long in unfolded(shown.split("Last metrics")[1], "a-name")
    experiment = contents(Path("runs", long, "config.json"))["experiment"]
    assert experiment in unfolded(shown.split("experiment", 1)[1], experiment[:5])
    assert jattn("show", "a-name").out.splitlines()[0] == str(finished / "runs" / long)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nope"], "invalid choice: 'nope'"),
        (["runs", "--rot", "x"], "unrecognized arguments: --rot"),
        (["show"], "the following arguments are required: RUN"),
        (["bench", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_wrong_commands(jattn: Shell, ladder: Path, arguments: list[str], message: str) -> None:
    status, out, err = jattn(*arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_piped_output_is_plain_and_whole(finished: Path) -> None:
    long = "r" * 90
    Path("runs/short").rename(Path("runs", long))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    command = [sys.executable, "-m", "jattn.cli", "runs", "preset=smoke"]
    piped = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=finished, timeout=120)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert "\x1b" not in piped.stdout
    assert f"{long} (ladder, smoke)  completed  1/2" in piped.stdout


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
