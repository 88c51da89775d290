"""The run directory: everything one run of an experiment leaves, and the one process that may write to it.

config.json         experiment, preset and the frozen config
environment.json    versions, devices and revision of every process that worked on the run
status.json         running, completed, stopped or failed; why
metrics/<stage>.jsonl, tensorboard/<stage>/
checkpoints/<stage>/<step>/
figures/*.svg and *.html with captions.json, claims.json, results.json
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
import numpy as np
from matplotlib.figure import Figure

from jattn.runs.checkpoints import Best, Checkpoints, Restored
from jattn.runs.claim import Bar, Claim, Estimate, Verdict, judge
from jattn.runs.environment import record_environment
from jattn.runs.experiment import Experiment
from jattn.runs.files import write_whole
from jattn.runs.interruption import StopRequest
from jattn.runs.lock import DirectoryLock, Locked, is_locked
from jattn.runs.metrics import MetricRecord, MetricWriter, read_metrics

log = logging.getLogger("jattn")

CONFIG, ENVIRONMENT, STATUS, CLAIMS, RESULTS = (
    f"{name}.json" for name in ("config", "environment", "status", "claims", "results")
)
LOCK = "lock"
ABSENT = "absent"
"""How a field that one side of a comparison lacks is shown."""


class RunError(Exception):
    """A run cannot be opened or go on; the message says why and what to do."""


class Stopped(Exception):
    """The run was asked to stop and has checkpointed; resuming goes on from there."""


class Stage:
    """One training inside a run: its metric record and its checkpoints."""

    def __init__(self, run: "Run", name: str, *, keep: int, best: Best | None):
        self.run, self.name = run, name
        self.metrics = MetricRecord(run.directory / "metrics" / f"{name}.jsonl", name, run.trackers)
        self._checkpoints = Checkpoints(run.directory / "checkpoints" / name, keep=keep, best=best)

    def restore(self, template: Any) -> Restored | None:
        """The newest whole checkpoint, with the metric record cut back to it; None, and an empty record, if none.

        Raises:
          RunError: the checkpoint was made under another config (the message lists the fields), or the metric record
            lost lines that the checkpoint counts on.
          CheckpointError: its arrays do not fit the template.
        """
        restored = self._checkpoints.restore(template)
        if restored is not None:
            differing = differing_fields(restored.sidecar["config"], self.run.config_json)
            if differing:
                raise RunError(
                    f"the checkpoint of step {restored.step} of stage {self.name} was made under another config:\n"
                    + describe_differences(differing, "checkpoint", "run")
                )
        try:
            self.metrics.rewind(restored.sidecar["metrics_length"] if restored is not None else 0)
        except ValueError as error:
            raise RunError(f"stage {self.name} cannot go on: {error}") from None
        return restored

    def save(self, step: int, state: Any, position: Any, measured: dict[str, float]) -> None:
        """Checkpoint the state, the data position and the length of the metric record.

        Args:
          measured: the evaluation of this very state; empty if it was not evaluated.
        """
        sidecar = {
            "config": self.run.config_json,
            "metrics_length": self.metrics.sync(),
            "data_position": position,
        }
        self._checkpoints.save(step, state, sidecar, measured)

    def wait(self) -> None:
        self._checkpoints.wait()

    def close(self) -> None:
        self.metrics.close()
        self._checkpoints.close()


class Run:
    """An open run directory. Make one with `open_run`."""

    def __init__(
        self, directory: Path, config: Any, trackers: Sequence[MetricWriter], stop_request: StopRequest, quiet: bool
    ):
        self.directory = directory
        self.config_json = to_json(config)
        self.trackers = trackers
        self.stop_request = stop_request
        self.quiet = quiet
        self.verdicts: list[Verdict] = []
        # What an earlier process left stays until this one has made it anew.
        self._earlier_verdicts = read_verdicts(directory)
        self._captions: dict[str, str] = read_json(directory / "figures" / "captions.json") or {}

    @contextmanager
    def stage(self, name: str, *, keep: int = 2, best: Best | None = None) -> Iterator[Stage]:
        """Open a training stage by name; the name is a directory's, so letters, digits, - and _ only."""
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise ValueError(f"name of a stage must be letters, digits, - and _; got {name!r}")
        stage = Stage(self, name, keep=keep, best=best)
        try:
            yield stage
        finally:
            stage.close()

    def history(self, stage: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The stage's metrics so far: name -> (steps, values)."""
        return read_metrics(self.directory / "metrics" / f"{stage}.jsonl")

    def figure(self, name: str, figure: Figure, caption: str) -> Path:
        """Save a figure as SVG with the caption the report shows under it."""
        path = self.directory / "figures" / f"{name}.svg"
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".svg.partial")
        with matplotlib.rc_context({"svg.hashsalt": name}):  # ids that do not change from one writing to the next
            figure.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None})
        os.replace(temporary, path)
        self._caption(path, caption)
        return path

    def view(self, name: str, page: str, caption: str) -> Path:
        """Save an HTML page, complete in itself, that the report shows among the figures, with its caption.

        The report lets nothing in it run or load, as pages are of whoever wrote the run directory.
        """
        path = self.directory / "figures" / f"{name}.html"
        path.parent.mkdir(exist_ok=True)
        write_whole(path, page)
        self._caption(path, caption)
        return path

    def _caption(self, path: Path, caption: str) -> None:
        self._captions[path.stem] = caption
        write_whole(path.parent / "captions.json", json.dumps(self._captions, indent=2))
        # What had the name before may have been of the other kind.
        path.with_suffix(".html" if path.suffix == ".svg" else ".svg").unlink(missing_ok=True)

    def settle(self, claim: Claim, measured: Any, control: Any, finding: str = "") -> Verdict:
        """Judge a claim (see `judge`), keep the verdict and write the claims so far."""
        if any(verdict.claim.name == claim.name for verdict in self.verdicts):
            raise ValueError(f"claim {claim.name!r} is settled already")
        verdict = judge(claim, measured, control, finding)
        self.verdicts.append(verdict)
        settled = {verdict.claim.name for verdict in self.verdicts}
        self._write_verdicts(self.verdicts + [old for old in self._earlier_verdicts if old.claim.name not in settled])
        return verdict

    def _write_verdicts(self, verdicts: list[Verdict]) -> None:
        # JSON has no infinity: an open side of a bar or interval is written as null.
        rows = [to_json(verdict) for verdict in verdicts]
        write_whole(self.directory / CLAIMS, json.dumps(rows, indent=2, ensure_ascii=False))

    def finish(self) -> None:
        """Drop what only an earlier process left: this one has made all there is to make."""
        if self._earlier_verdicts:
            self._write_verdicts(self.verdicts)

    def save_results(self, results: dict[str, Any]) -> None:
        """Keep the numbers behind the claims and figures, as JSON."""
        write_whole(self.directory / RESULTS, json.dumps(results, indent=2))

    def stop_if_asked(self) -> None:
        """Raise Stopped when a signal asked for it; call where nothing would be lost."""
        if self.stop_request:
            raise Stopped(f"stopped on request; go on with: jattn resume {self.directory}")


@contextmanager
def open_run(
    experiment: Experiment,
    preset: str,
    config: Any,
    directory: Path,
    *,
    trackers: Sequence[Callable[[Path], MetricWriter]] = (),
    quiet: bool = False,
) -> Iterator[Run]:
    """Take a run directory, new or left unfinished by an earlier process, and hold it while the run works.

    Args:
      trackers: each is given the directory, once it is this run's, and returns where metrics also go.
      quiet: show no progress.

    Raises:
      RunError: another process holds it, or it holds a run of another experiment or config (fields listed).
    """
    directory = directory.expanduser().resolve()
    directory.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in directory.iterdir()}
    # A process killed before it had frozen the config leaves the lock and perhaps a part of the config.
    if CONFIG not in names and not all(name == LOCK or name.startswith(f".{CONFIG}.") for name in names):
        raise RunError(f"{directory} is not empty and holds no run; give a new directory")
    try:
        lock = DirectoryLock(directory / LOCK)
    except Locked as error:
        raise RunError(str(error)) from None
    stop_request = StopRequest()
    writers: list[MetricWriter] = []
    try:
        _freeze_config(directory, experiment, preset, config)
        writers += [open_tracker(directory) for open_tracker in trackers]
        _add_environment(directory)
        _write_status(directory, "running")
        with stop_request.listening():
            run = Run(directory, config, writers, stop_request, quiet)
            try:
                yield run
            except (Stopped, KeyboardInterrupt) as stop:
                _write_status(directory, "stopped", str(stop) or "interrupted")
                raise
            except BaseException as error:
                with suppress(OSError):  # on a full disk, say, which is then the error that matters
                    _write_status(directory, "failed", f"{type(error).__name__}: {error}")
                raise
            run.finish()
            _write_status(directory, "completed")
    finally:
        for writer in writers:
            writer.close()
        lock.release()


def to_json(value: Any) -> Any:
    """A dataclass as JSON would give it back: tuples as lists, infinities and not-a-number as None."""
    return json.loads(msgspec.json.encode(value))


def differing_fields(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The leaves in which two JSON objects differ: dotted name -> (old, new); a side without it is `ABSENT`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in sorted({*old, *new}):
            below = f"{prefix}.{name}" if prefix else name
            found |= differing_fields(old.get(name, ABSENT), new.get(name, ABSENT), below)
        return found
    return {} if old == new else {prefix: (old, new)}


def describe_differences(differing: dict[str, tuple[Any, Any]], old: str, new: str) -> str:
    """One line a field: its name, and what either side holds."""
    return "\n".join(f"  {name}: {old} {a!r}, {new} {b!r}" for name, (a, b) in differing.items())


def read_json(path: Path) -> Any:
    """A JSON file of a run directory, or None if it is not there.

    Raises:
      RunError: it is there and is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not readable: {error}") from None


def read_frozen(directory: Path) -> dict[str, Any]:
    """The experiment, preset and config a run was begun with.

    Raises:
      RunError: the directory holds no run.
    """
    frozen = read_json(directory / CONFIG)
    if not isinstance(frozen, dict) or not {"experiment", "preset", "config"} <= frozen.keys():
        raise RunError(f"{directory} holds no run ({CONFIG} is missing or is not a run's)")
    return frozen


def read_verdicts(directory: Path) -> list[Verdict]:
    """The claims a run has settled so far."""
    rows = read_json(directory / CLAIMS) or []
    try:
        return [_verdict_of(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{directory / CLAIMS} does not hold claims: {error!r}") from None


def _verdict_of(row: dict[str, Any]) -> Verdict:
    def number(value: float | None, default: float) -> float:
        return default if value is None else value

    def interval(part: dict[str, Any]) -> Estimate:
        return Estimate(
            number(part["mean"], float("nan")),
            number(part["low"], -float("inf")),
            number(part["high"], float("inf")),
            part["repetitions"],
        )

    bar = Bar(number(row["claim"]["bar"]["low"], -float("inf")), number(row["claim"]["bar"]["high"], float("inf")))
    claim = Claim(**{**row["claim"], "bar": bar})
    return Verdict(claim, interval(row["measured"]), interval(row["control"]), row["held"], row["reason"])


def read_status(directory: Path) -> dict[str, Any]:
    """The run's status; a run that says it is running and that no process holds was killed."""
    status = {"status": "unknown", "detail": "", "at": ""} | (read_json(directory / STATUS) or {})
    if status["status"] == "running" and not is_locked(directory / LOCK):
        status["status"] = "killed"
    return status


def _write_status(directory: Path, status: str, detail: str = "") -> None:
    at = datetime.now(UTC).isoformat(timespec="microseconds")
    write_whole(directory / STATUS, json.dumps({"status": status, "detail": detail, "at": at}, indent=2))


def _freeze_config(directory: Path, experiment: Experiment, preset: str, config: Any) -> None:
    frozen = {"experiment": experiment.name, "preset": preset, "config": to_json(config)}
    if not (directory / CONFIG).exists():
        write_whole(directory / CONFIG, json.dumps(frozen, indent=2))
        return
    before = read_frozen(directory)
    differing = differing_fields(
        {"experiment": before["experiment"], **before["config"]}, {"experiment": experiment.name, **frozen["config"]}
    )
    if differing:
        raise RunError(
            f"{directory} holds a run of another config:\n" + describe_differences(differing, "there", "asked for")
        )


def _add_environment(directory: Path) -> None:
    sessions = read_json(directory / ENVIRONMENT) or []
    sessions.append(record_environment() | {"started": datetime.now(UTC).isoformat(timespec="seconds")})
    if len(sessions) > 1:
        keys = ("python", "packages", "devices", "processor", "git", "x64")
        before, now = ({key: session[key] for key in keys} for session in sessions[-2:])
        differing = differing_fields(before, now)
        if differing:
            log.warning(
                "the environment is not what the run began with, so its numbers may differ in the last digits:\n%s",
                describe_differences(differing, "before", "now"),
            )
    write_whole(directory / ENVIRONMENT, json.dumps(sessions, indent=2))
