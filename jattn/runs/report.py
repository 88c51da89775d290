"""One self-contained HTML page of any set of runs: claims, figures, training curves, environments and configs.

The page needs no network and no script; the same run directories give the same bytes. Run directories may be anyone's:
their text is escaped, their pictures are images, and their pages are in frames that run and load nothing.
"""

import base64
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from jattn.runs.directory import ENVIRONMENT, RESULTS, RunError, read_json
from jattn.runs.files import write_whole
from jattn.runs.index import Summary, summarise
from jattn.runs.metrics import read_metrics

EVALUATION = "eval/"
"""Metrics whose names start so were measured on held-out data; their curves stand apart from training's."""

CURVE_STYLE = {
    "axes.edgecolor": "#9a9a94",
    "axes.grid": True,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "grid.color": "#e9e9e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.15,
    "lines.markersize": 3.5,
    "svg.hashsalt": "jattn",  # ids that do not change from one writing to the next
    "xtick.color": "#9a9a94",
    "xtick.labelcolor": "#44443f",
    "ytick.color": "#9a9a94",
    "ytick.labelcolor": "#44443f",
}
TRAINING_COLOUR, EVALUATION_COLOUR = "#2f6690", "#a4541d"
FEW_POINTS, MANY_POINTS = 40, 2000
CHARACTERS = 100
"""In a line of a view, about."""

Series = tuple[np.ndarray, np.ndarray]
"""Steps, and the values at them: (steps,) or (steps, seeds)."""


@dataclass(frozen=True)
class _Picture:
    """An image as a data URI, with what it is called and what is said about it."""

    name: str
    source: str
    caption: str


@dataclass(frozen=True)
class _View:
    """An HTML page of a run's, what is said about it, and how high its frame is, in rem."""

    page: str
    caption: str
    height: int


@dataclass(frozen=True)
class _Curves:
    """A stage's metrics, drawn; `omitted` names those a curve cannot show."""

    stage: str
    training: list[_Picture]
    evaluation: list[_Picture]
    omitted: list[str]


@dataclass(frozen=True)
class _Environment:
    """What some sessions in a row, each with its start and command, ran on; and whether the source was modified."""

    sessions: list[tuple[datetime, str]]
    facts: dict[str, str]
    dirty: bool


@dataclass(frozen=True)
class _Section:
    """Everything the page says of one run."""

    anchor: str
    name: str
    summary: Summary
    at: datetime | None
    environments: list[_Environment]
    figures: list[_Picture | _View]
    curves: list[_Curves]
    config: dict[str, str]
    results: str


def write_report(directories: Sequence[Path], out: Path) -> None:
    """Write one HTML page about the runs in these directories, in this order.

    Raises:
      ValueError: no directory is given.
      RunError: a directory holds no run, or something in it cannot be read; the message names the path.
    """
    if not directories:
        raise ValueError("directories must name at least one run; got none")
    sections = [_read_section(Path(path), f"run-{number}") for number, path in enumerate(directories, 1)]
    experiments = Counter(section.summary.experiment for section in sections)
    page = _template().render(sections=sections, experiments=experiments)
    out.parent.mkdir(parents=True, exist_ok=True)
    # An error message may quote a file name that is no valid Unicode; it is shown escaped.
    write_whole(out, page.encode(errors="backslashreplace"))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jattn.runs", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _read_section(directory: Path, anchor: str) -> _Section:
    try:
        summary = summarise(directory)
        return _Section(
            anchor=anchor,
            name=directory.resolve().name,
            summary=summary,
            at=_time(summary.at) if summary.at else None,
            environments=_environments(read_json(directory / ENVIRONMENT) or []),
            figures=_figures(directory / "figures"),
            curves=[_curves(path) for path in sorted((directory / "metrics").glob("*.jsonl"))],
            config=dict(_leaves(summary.config)),
            results=_pretty(read_json(directory / RESULTS)),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{directory} is not readable as a run: {type(error).__name__}: {error}") from error


def _time(iso: str) -> datetime:
    return datetime.fromisoformat(iso).astimezone(UTC)


def _environments(sessions: Sequence[Mapping[str, Any]]) -> list[_Environment]:
    """The environments a run went through: sessions in a row that differ in nothing but when and how they started."""
    environments: list[_Environment] = []
    for session in sessions:
        start = (_time(session["started"]), shlex.join(session["command"]))
        facts, dirty = _facts(session), bool(session["git"] and session["git"]["dirty"])
        if environments and (environments[-1].facts, environments[-1].dirty) == (facts, dirty):
            environments[-1].sessions.append(start)
        else:
            environments.append(_Environment([start], facts, dirty))
    return environments


def _facts(session: Mapping[str, Any]) -> dict[str, str]:
    git = session["git"]
    packages = [f"{name} {version}" for name, version in session["packages"].items() if version]
    devices = [f"{count}x {kind}" if count > 1 else kind for kind, count in Counter(session["devices"]).items()]
    hosts = f", {session['processes']} processes" if session["processes"] > 1 else ""
    return {
        "Devices": f"{', '.join(devices)} ({session['backend']}{hosts})",
        "Processor": session["processor"],
        "System": session["platform"],
        "Versions": ", ".join([f"Python {session['python']}", *packages]),
        "Precision": "64-bit numbers enabled" if session["x64"] else "32-bit numbers",
        "Revision": git["commit"] if git else "not known",
    }


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The fields of a config with their values as JSON; a nested field's name is dotted."""
    if isinstance(value, dict) and (value or not prefix):
        for name, part in value.items():
            yield from _leaves(part, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, json.dumps(value, ensure_ascii=False)


def _pretty(results: Any) -> str:
    """Indented JSON with each list of plain numbers on one line; empty for None."""
    if results is None:
        return ""
    text = json.dumps(results, indent=2, ensure_ascii=False)
    return re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: re.sub(r"\n\s*", " ", found[0]), text)


def _figures(directory: Path) -> list[_Picture | _View]:
    captions = read_json(directory / "captions.json") or {}
    return [_figure(directory, name, caption) for name, caption in captions.items()]


def _figure(directory: Path, name: str, caption: str) -> _Picture | _View:
    view = directory / f"{name}.html"
    if view.exists():
        page = view.read_text(encoding="utf-8")
        return _View(page, caption, _height(page))
    return _Picture(name, _data_uri((directory / f"{name}.svg").read_bytes()), caption)


def _height(page: str) -> int:
    """About what a page of text needs, within bounds: a frame cannot grow with its content without a script."""
    text = re.sub(r"<[^>]*>", "", re.sub(r"(?s)<(style|title)\b.*?</\1>", "", page))
    lines = sum(1 + len(line) // CHARACTERS for line in text.splitlines() if line.strip())
    return min(max(8, 2 * lines), 32)


def _data_uri(svg: bytes) -> str:
    """An SVG as the source of an image: its ids stay its own, and nothing in it can run or load."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _curves(record: Path) -> _Curves:
    """Draw every metric of a stage that is one number, or one number a seed, at each step."""
    try:
        metrics = read_metrics(record)
    except (ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{record} is not readable: {type(error).__name__}: {error}") from error
    drawable = {name: series for name, series in metrics.items() if _is_drawable(series[1])}
    limits = _step_limits(drawable)
    training = [_draw(name, *drawable[name], limits, TRAINING_COLOUR) for name in drawable if not _is_evaluation(name)]
    evaluation = [_draw(name, *drawable[name], limits, EVALUATION_COLOUR) for name in drawable if _is_evaluation(name)]
    return _Curves(record.stem, training, evaluation, [name for name in metrics if name not in drawable])


def _is_evaluation(name: str) -> bool:
    return name.startswith(EVALUATION)


def _is_drawable(values: np.ndarray) -> bool:
    return values.ndim <= 2 and values.size > 0 and values.dtype.kind in "biuf"


def _step_limits(metrics: Mapping[str, Series]) -> tuple[float, float]:
    """The steps all panels of a stage span, with a margin."""
    steps = [step for steps, _ in metrics.values() for step in (steps.min(), steps.max())]
    first, last = min(steps, default=0), max(steps, default=1)
    margin = 0.03 * (last - first) or 1.0
    return first - margin, last + margin


def _draw(name: str, steps: np.ndarray, values: np.ndarray, limits: tuple[float, float], colour: str) -> _Picture:
    """One panel: a line, or the mean over seeds in a band from the least to the greatest."""
    seeds = values.astype(np.float64).reshape(len(steps), -1)
    finite = np.asarray(np.isfinite(seeds).all(axis=1))
    seeds[~finite] = np.nan  # a gap
    with matplotlib.style.context(["default", CURVE_STYLE]):
        figure = Figure(figsize=(3.5, 2.1), layout="constrained")
        axes = figure.subplots()
        _set_scales(axes, seeds[finite], limits)
        axes.plot(steps, seeds.mean(axis=1), color=colour, marker="o" if len(steps) <= FEW_POINTS else None)
        if seeds.shape[1] > 1:
            # Matplotlib thins out long lines but not long bands, so those are stored as pixels.
            many = len(steps) > MANY_POINTS
            low, high = seeds.min(axis=1), seeds.max(axis=1)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, rasterized=many)
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", dpi=200, metadata={"Date": None})
    return _Picture(name.removeprefix(EVALUATION), _data_uri(svg.getvalue()), _last_value(steps, seeds, finite))


def _set_scales(axes: Axes, values: np.ndarray, limits: tuple[float, float]) -> None:
    """Steps along x; y logarithmic where every value is positive, with ticks that suit how far it reaches."""
    axes.set_xlim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step", color="#6b6b65")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if values.size and values.min() > 0:
        decades = np.log10(values.max() / values.min())
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            MaxNLocator(5) if decades < 1 else LogLocator(subs=(1, 2, 5)) if decades < 2.5 else LogLocator()
        )
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _last_value(steps: np.ndarray, seeds: np.ndarray, finite: np.ndarray) -> str:
    """The panel's caption: where the metric ended, and whether it left the finite numbers."""
    last = seeds[-1]
    spread = f" ({last.min():.4g} to {last.max():.4g} over {last.size} seeds)" if last.size > 1 else ""
    ending = f"{last.mean():.4g}{spread}" if finite[-1] else "not finite"
    lost = f"; not finite at {(~finite).sum()} of {len(finite)} points" if not finite.all() else ""
    return f"{ending} at step {steps[-1]}{lost}"
