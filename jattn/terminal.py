"""What the command line prints: experiments, runs, claims and measurements, on a terminal of any width or in a file."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jattn.runs.claim import Verdict
from jattn.runs.directory import differing_fields
from jattn.runs.experiment import Experiment
from jattn.runs.index import Summary

LastMetrics = Mapping[str, Mapping[str, tuple[int, Any]]]
STATUS_STYLES = {"completed": "green", "running": "cyan", "stopped": "yellow", "killed": "yellow", "failed": "red"}


def experiments_list(experiments: Mapping[str, Experiment]) -> RenderableType:
    """Experiments, papers, presets and costs."""
    parts: list[RenderableType] = []
    for name, experiment in experiments.items():
        parts.append(Text.assemble((name, "bold"), f": {experiment.summary}"))
        if experiment.paper is not None:
            paper = experiment.paper
            cited = f"{paper.authors}: {paper.title}. {paper.venue}, arXiv {paper.arxiv}"
            parts.append(Padding(Text(cited), (0, 0, 0, 2)))
        presets = Table.grid(padding=(0, 2))
        for preset, choice in experiment.presets.items():
            default = " (default)" if preset == experiment.default_preset else ""
            presets.add_row(Text(f"--preset {preset}{default}", no_wrap=True), Text(choice.cost))
        parts.append(Padding(presets, (0, 0, 1, 4)))
    return Group(*parts, Text("Run one: jattn run NAME --preset PRESET"))


def runs_table(runs: Sequence[Summary]) -> RenderableType:
    """One line a run."""
    table = _table(["run", "status", "claims", "last change"])
    for column in table.columns[1:]:
        column.no_wrap = True
    for run in runs:
        name, what = run.directory.name, (Path(run.experiment).stem, run.preset)
        told = name if name.endswith("-".join(what)) else f"{name} ({', '.join(what)})"
        changed = f"{datetime.fromisoformat(run.at).astimezone():%d %b %H:%M}" if run.at else ""
        table.add_row(Text(told), _status(run.status), run.held, changed)
    return table if runs else "There is no such run."


def summary_table(run: Summary, sessions: Sequence[Mapping[str, Any]]) -> Table:
    """A run's state, environment and config."""
    table = Table.grid(padding=(0, 2))
    table.add_row("experiment", Text(f"{run.experiment} ({run.preset})", overflow="fold"))
    table.add_row("status", Text.assemble(_status(run.status), f" {run.detail}"))
    for session in sessions[-1:]:
        git = session["git"]
        revision = f"{git['commit'][:10]}{' (dirty)' if git['dirty'] else ''}" if git else "no git revision"
        packages = ", ".join(f"{name} {version}" for name, version in session["packages"].items() if version)
        table.add_row("environment", Text(f"Python {session['python']}, {packages}; {revision}"))
        table.add_row("devices", Text(f"{', '.join(session['devices'])} ({session['processor']})"))
    for row, (name, value) in enumerate(run.config.items()):
        table.add_row("" if row else "config", Text(f"{name} = {value}"))
    return table


def claims_table(verdicts: Sequence[Verdict]) -> RenderableType:
    """Every settled claim: what the paper says, the bar, the measurement, its control, and whether it held."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for verdict in verdicts:
        claim = verdict.claim
        said = Text.assemble(
            (claim.name, "bold"),
            f": {claim.statement}\n",
            f"measured {verdict.measured}, bar {claim.bar}\n",
            f"control {verdict.control}, {claim.control}\n",
            f"paper: {claim.paper}",
            "" if verdict.held else (f"\n{verdict.reason}", "red"),
        )
        table.add_row(Text("held", "bold green") if verdict.held else Text("NOT HELD", "bold red"), said)
        table.add_row()
    if not verdicts:
        return "No claim is settled yet."
    missed = [verdict.claim.name for verdict in verdicts if not verdict.held]
    tally = f"{len(verdicts) - len(missed)} of {len(verdicts)} claims held."
    return Group(table, Text(f"{tally} Not held: {'; '.join(missed)}." if missed else tally))


def claims_markdown(verdicts: Sequence[Verdict]) -> str:
    """The same table in Markdown."""
    if not verdicts:
        return "No claim is settled yet."
    rows = [
        {
            "claim": f"{verdict.claim.name}: {verdict.claim.statement}",
            "paper": verdict.claim.paper,
            "bar": verdict.claim.bar,
            "measured": verdict.measured,
            "control": f"{verdict.control} ({verdict.claim.control})",
            "held": "held" if verdict.held else f"**not held**: {verdict.reason}",
        }
        for verdict in verdicts
    ]
    return rows_markdown(rows)


def config_differences_table(runs: Sequence[Summary]) -> RenderableType:
    """The config fields in which runs differ."""
    first, *others = runs
    differing = [differing_fields(first.config, other.config) for other in others]
    table = _table(["config field", *(run.directory.name for run in runs)], "Where the configs differ")
    for name in sorted(set[str]().union(*differing)):
        common = next(fields[name][0] for fields in differing if name in fields)
        values = (common, *(fields[name][1] if name in fields else common for fields in differing))
        table.add_row(*(Text(str(cell)) for cell in (name, *values)))
    return table if table.row_count else "The configs are the same."


def claims_side_by_side(runs: Sequence[Summary]) -> RenderableType:
    """Each claim's measurement in every run."""
    table = _table(["claim", *(run.directory.name for run in runs)], "Claims side by side")
    names = dict.fromkeys(verdict.claim.name for run in runs for verdict in run.verdicts)
    for name in names:
        found = [next((v for v in run.verdicts if v.claim.name == name), None) for run in runs]
        cells = ("" if v is None else f"{v.measured}\n{'held' if v.held else 'NOT HELD'}" for v in found)
        table.add_row(*map(Text, (name, *cells)))
    return table if names else "No claim is settled yet."


def metrics_table(runs: Mapping[str, LastMetrics]) -> RenderableType:
    """The newest value of every metric that is a number or one number a seed, run by run."""
    table = _table(["stage", "metric", *runs], "Last metrics (mean over seeds)")
    names = dict.fromkeys((stage, name) for stages in runs.values() for stage in stages for name in stages[stage])
    for stage, name in names:
        found = [stages.get(stage, {}).get(name) for stages in runs.values()]
        if all(entry is None or np.ndim(entry[1]) <= 1 for entry in found):
            cells = ("" if e is None else f"{np.mean(e[1]):.5g} at step {e[0]}" for e in found)
            table.add_row(*map(Text, (stage, name, *cells)))
    return table if table.row_count else "No metrics are recorded yet."


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Any rows with the same keys, which are the columns."""
    table = _table(list(rows[0]), title)
    for row in rows:
        table.add_row(*(Text(_number(value)) for value in row.values()))
    return table


def rows_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same table in Markdown."""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *([_number(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _table(columns: Sequence[str], title: str | None = None) -> Table:
    """Without rules between the columns, so that narrow terminals hold more and lines of a file can be searched."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(escape(column), header_style="dim", overflow="fold")
    return table


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _status(status: str) -> Text:
    return Text(status, style=STATUS_STYLES.get(status, ""))
