"""The runs under a directory: found, summed up and filtered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jattn.runs.claim import Verdict
from jattn.runs.directory import CONFIG, RunError, read_frozen, read_status, read_verdicts
from jattn.runs.metrics import read_metrics

RUNS = Path("runs")
"""Where runs go unless a directory is given, relative to where the command is called."""


@dataclass(frozen=True)
class Summary:
    """A run as a table shows it."""

    directory: Path
    experiment: str
    preset: str
    config: dict[str, Any]
    status: str
    detail: str
    at: str
    verdicts: list[Verdict]

    @property
    def held(self) -> str:
        """Claims held out of those settled, or nothing before any is."""
        return f"{sum(v.held for v in self.verdicts)}/{len(self.verdicts)}" if self.verdicts else ""


def summarise(directory: Path) -> Summary:
    """Read what a run directory says of itself.

    Raises:
      RunError: the directory holds no run, or a file of it cannot be read.
    """
    frozen = read_frozen(directory)
    status = read_status(directory)
    return Summary(
        directory, frozen["experiment"], frozen["preset"], frozen["config"],
        status["status"], status["detail"], status["at"], read_verdicts(directory),
    )  # fmt: skip


def list_runs(root: Path, filters: Sequence[str] = ()) -> list[Summary]:
    """Every run below `root`, newest last, that matches every filter.

    A filter is `field=value`: the field is experiment, preset, status or a config field (dotted when nested).

    Raises:
      ValueError: a filter without "=".
    """
    for text in filters:
        if "=" not in text:
            raise ValueError(f"filter must be field=value; got {text!r}")
    found = [summarise(path.parent) for path in sorted(root.glob(f"*/{CONFIG}"))]
    return sorted((run for run in found if all(_matches(run, text) for text in filters)), key=lambda run: run.at)


def find_run(name: str, root: Path) -> Path:
    """A run by its path, its name under `root`, a part of the name that only it has, or `latest`.

    Raises:
      RunError: none, or more than one, fits.
    """
    for path in (Path(name), root / name):
        if (path / CONFIG).exists():
            return path.resolve()
    runs = list_runs(root)
    if name == "latest" and runs:
        return runs[-1].directory.resolve()
    fitting = [run.directory for run in runs if name in run.directory.name]
    if len(fitting) == 1:
        return fitting[0].resolve()
    names = ", ".join(run.directory.name for run in runs) or "none yet"
    problem = "matches more than one run" if fitting else "is no run"
    raise RunError(f"{name!r} {problem}; under {root} there are: {names}")


def last_metrics(directory: Path) -> dict[str, dict[str, tuple[int, Any]]]:
    """Each stage's newest value of every metric: stage -> name -> (step, value)."""
    return {
        path.stem: {name: (int(steps[-1]), values[-1]) for name, (steps, values) in read_metrics(path).items()}
        for path in sorted((directory / "metrics").glob("*.jsonl"))
    }


def _matches(run: Summary, text: str) -> bool:
    field, wanted = text.split("=", 1)
    fields = _flat(run.config) | {"experiment": run.experiment, "preset": run.preset, "status": run.status}
    if field not in fields:
        return False
    value = fields[field]
    return wanted in (str(value), ",".join(map(str, value)) if isinstance(value, list) else str(value))


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config; a nested one's name is dotted."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
