"""What the command line prints: tables of experiments, runs, claims and measurements."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jattn.runs.claim import Verdict
from jattn.runs.directory import differing_fields
from jattn.runs.experiment import Experiment
from jattn.runs.index import Summary

LastMetrics = Mapping[str, Mapping[str, tuple[int, Any]]]
STATUS_STYLES = {"completed": "green", "running": "cyan", "stopped": "yellow", "killed": "yellow", "failed": "red"}


def experiments_table(experiments: Mapping[str, Experiment]) -> Table:
    """Experiments, papers, presets and costs."""
    table = Table("experiment", "paper", "preset", "cost", title="jattn run EXPERIMENT --preset PRESET")
    for name, experiment in experiments.items():
        paper = experiment.paper
        cited = f"{paper.title}\n{paper.authors}, {paper.venue}, arXiv {paper.arxiv}" if paper else ""
        for row, (preset, choice) in enumerate(experiment.presets.items()):
            first = (f"[bold]{name}[/]\n{escape(experiment.summary)}", escape(cited)) if row == 0 else ("", "")
            marked = f"{preset} (default)" if preset == experiment.default_preset else preset
            table.add_row(*first, marked, escape(choice.cost))
        table.add_section()
    return table


def runs_table(runs: Sequence[Summary]) -> Table:
    """One line a run."""
    table = Table("run", "experiment", "preset", "status", "claims held", "last change")
    for run in runs:
        table.add_row(run.directory.name, escape(run.experiment), run.preset, _status(run.status), run.held, run.at)
    return table


def summary_table(run: Summary, sessions: Sequence[Mapping[str, Any]]) -> Table:
    """A run's state, environment and config."""
    table = Table.grid(padding=(0, 2))
    table.add_row("run", str(run.directory))
    table.add_row("experiment", f"{escape(run.experiment)} ({run.preset})")
    table.add_row("status", Text.assemble(_status(run.status), f" {run.detail}"))
    for session in sessions[-1:]:
        git = session["git"]
        revision = f"{git['commit'][:10]}{' (dirty)' if git['dirty'] else ''}" if git else "no git revision"
        packages = " ".join(f"{name} {version}" for name, version in session["packages"].items() if version)
        table.add_row("environment", f"Python {session['python']}, {packages}; {revision}")
        table.add_row("devices", f"{', '.join(session['devices'])} ({session['processor']})")
    for name, value in run.config.items():
        table.add_row(f"  {name}", escape(str(value)))
    return table


def claims_table(verdicts: Sequence[Verdict]) -> RenderableType:
    """Every settled claim: what the paper says, the bar, the measurement, its control, and whether it held."""
    table = Table("claim", "paper", "bar", "measured", "control", "held", title="Claims")
    for verdict in verdicts:
        claim = verdict.claim
        held = "[bold green]held[/]" if verdict.held else f"[bold red]not held[/]\n{escape(verdict.reason)}"
        table.add_row(
            f"[bold]{escape(claim.name)}[/]\n{escape(claim.statement)}",
            escape(claim.paper),
            str(claim.bar),
            str(verdict.measured),
            f"{verdict.control}\n{escape(claim.control)}",
            held,
        )
        table.add_section()
    if not verdicts:
        return "No claim is settled yet."
    held = sum(verdict.held for verdict in verdicts)
    return Group(table, f"{held} of {len(verdicts)} claims held.")


def claims_markdown(verdicts: Sequence[Verdict]) -> str:
    """The same table in Markdown."""
    lines = ["| claim | paper | bar | measured | control | held |", "| --- | --- | --- | --- | --- | --- |"]
    for verdict in verdicts:
        claim = verdict.claim
        cells = (
            f"{claim.name}: {claim.statement}",
            claim.paper,
            str(claim.bar),
            str(verdict.measured),
            f"{verdict.control} ({claim.control})",
            "held" if verdict.held else f"**not held**: {verdict.reason}",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def config_differences_table(runs: Sequence[Summary]) -> RenderableType:
    """The config fields in which runs differ."""
    flat = [{name: old for name, (old, _) in differing_fields(run.config, {}).items()} for run in runs]
    names = [name for name in sorted(set().union(*flat)) if len({str(config.get(name)) for config in flat}) > 1]
    table = Table("config field", *(run.directory.name for run in runs), title="Where the configs differ")
    for name in names:
        table.add_row(name, *(escape(str(config.get(name, "absent"))) for config in flat))
    return table if names else "The configs are the same."


def claims_side_by_side(runs: Sequence[Summary]) -> RenderableType:
    """Each claim's measurement in every run."""
    table = Table("claim", *(run.directory.name for run in runs), title="Claims side by side")
    names = dict.fromkeys(verdict.claim.name for run in runs for verdict in run.verdicts)
    for name in names:
        found = [next((v for v in run.verdicts if v.claim.name == name), None) for run in runs]
        table.add_row(
            escape(name), *("" if v is None else f"{v.measured} {'held' if v.held else 'not held'}" for v in found)
        )
    return table if names else "No claim is settled yet."


def metrics_table(runs: Mapping[str, LastMetrics]) -> RenderableType:
    """The newest value of every metric that is a number or one number a seed, run by run."""
    table = Table("stage", "metric", *runs, title="Last metrics (mean over seeds)")
    names = dict.fromkeys((stage, name) for stages in runs.values() for stage in stages for name in stages[stage])
    for stage, name in names:
        found = [stages.get(stage, {}).get(name) for stages in runs.values()]
        if all(entry is None or np.ndim(entry[1]) <= 1 for entry in found):
            table.add_row(stage, name, *("" if e is None else f"{np.mean(e[1]):.5g} at step {e[0]}" for e in found))
    return table if table.row_count else "No metrics are recorded yet."


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Any rows with the same keys, which are the columns."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(_number(value) for value in row.values()))
    return table


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _status(status: str) -> Text:
    return Text(status, style=STATUS_STYLES.get(status, ""))
