"""What the commands print, on terminals of any width and into pipes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ladder import Shell, contents

from jattn import cli
from jattn.runs import discover


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
