"""Checkpoints of one training stage: saved by Orbax in the background, each whole, sealed by a digest, or absent."""

import json
import logging
import math
import shutil
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from jattn.runs.files import tree_digest, write_whole

log = logging.getLogger("jattn")


class CheckpointError(Exception):
    """A checkpoint could not be saved, or does not belong to this run."""


@dataclass(frozen=True)
class Best:
    """Which checkpoint is the best: the metric it is judged by and which way is better."""

    metric: str
    mode: Literal["min", "max"] = "min"


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back: the state's arrays and the JSON that was saved beside them."""

    step: int
    state: Any
    sidecar: dict[str, Any]


class _Retention:
    """Which checkpoints stay: the newest few and the best. Orbax asks this after every save."""

    def __init__(self, keep: int, best: Best | None):
        self._keep, self._best = keep, best
        self._values: dict[int, float] = {}

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """Remember by what a checkpoint is judged; one that was not evaluated is never the best."""
        if self._best is None or not metrics:
            return
        if self._best.metric not in metrics:
            raise ValueError(f"best.metric must be one of {sorted(metrics)}; got {self._best.metric!r}")
        if not math.isnan(value := metrics[self._best.metric]):
            self._values[step] = value if self._best.mode == "min" else -value

    def best_of(self, steps: Iterable[int]) -> int | None:
        """The best of these steps, the earliest among equals; None if none was evaluated."""
        return min((step for step in sorted(steps) if step in self._values), key=self._values.__getitem__, default=None)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._keep :], self.best_of(steps)}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of a stage, under `directory/<step>`, with `<directory>.seals/<step>` beside them.

    Orbax commits a checkpoint by renaming it, so a crash leaves it whole or not there. The seal, written once it
    is committed, holds its digest, which tells later damage, and the metrics by which it can be the best.
    """

    def __init__(self, directory: Path, *, keep: int = 2, best: Best | None = None):
        if keep < 1:
            raise ValueError(f"keep must be at least 1; got {keep}")
        logging.getLogger("absl").addFilter(_raised_anyway)
        self.directory = directory.resolve()
        self._seals = self.directory.with_name(f"{self.directory.name}.seals")
        self._seals.mkdir(parents=True, exist_ok=True)
        self._saving = -1
        self._sealer: threading.Thread | None = None
        self._error: Exception | None = None
        self._retention = _Retention(keep, best)
        self._options = ocp.CheckpointManagerOptions(preservation_policy=self._retention)
        self._manager = self._open()
        for step in self.steps():
            self._retention.note(step, (self._read_seal(step) or _NO_SEAL)["metrics"])

    def _open(self) -> ocp.CheckpointManager:
        # Saves that were cut short. Orbax would remove them in the background, where two managers get in each
        # other's way.
        for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)
        return ocp.CheckpointManager(self.directory, options=self._options)

    def save(self, step: int, state: Any, sidecar: dict[str, Any], metrics: dict[str, float]) -> None:
        """Start saving in the background; arrays are copied first, so the caller may overwrite them.

        Args:
          sidecar: JSON that `restore` gives back.
          metrics: what this very state was measured to be; empty if it was not, and then it cannot be the best.

        Raises:
          CheckpointError: this save or the one before it failed (a full disk, say); older checkpoints are intact.
          ValueError: the metric of `best` is not among the metrics.
        """
        self.wait()
        self._retention.note(step, metrics)
        self._saving = step
        about = {"arrays": _describe_arrays(state), "metrics": metrics}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    sidecar=ocp.args.JsonSave(sidecar),
                    about=ocp.args.JsonSave(about),
                ),
            )
        except Exception as error:
            raise self._failure(error) from error
        self._sealer = threading.Thread(target=self._finish, args=(step, metrics), name="jattn_seal_checkpoint")
        self._sealer.start()

    def wait(self) -> None:
        """Wait for the save under way, if any, and raise what went wrong with it."""
        if self._sealer is not None:
            self._sealer.join()
            self._sealer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise self._failure(error) from error

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, oldest first."""
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def best_step(self) -> int | None:
        """The step of the best kept checkpoint by `best`, or None."""
        return self._retention.best_of(self.steps())

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None if there is none; says what it passed over.

        Args:
          template: arrays, or their shapes, in the structure, dtypes and shardings wanted.

        Raises:
          CheckpointError: the checkpoint is whole but its arrays are not those of the template.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        for step in reversed(self.steps()):
            seal = self._read_seal(step)
            if seal is not None and seal["digest"] != tree_digest(self.directory / str(step)):
                self._pass_over(step, "does not match its digest")
                continue
            try:
                about = self._read(step, about=ocp.args.JsonRestore())["about"]
                self._check_arrays(step, about["arrays"], _describe_arrays(template))
                got = self._read(step, state=ocp.args.StandardRestore(shapes), sidecar=ocp.args.JsonRestore())
            except CheckpointError:
                raise
            except Exception as error:
                if seal is not None:
                    raise CheckpointError(f"checkpoint {self.directory / str(step)} cannot be read: {error}") from error
                # The process died between commit and seal, so damage cannot be ruled out.
                self._pass_over(step, f"cannot be read ({error})")
                continue
            if seal is None:
                self._retention.note(step, about["metrics"])
                self._seal(step, about["metrics"])
            return Restored(step, got["state"], got["sidecar"])
        return None

    def close(self) -> None:
        """Wait for the save under way and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_arrays(self, step: int, saved: dict[str, str], wanted: dict[str, str]) -> None:
        # Orbax would cast what has another dtype without a word.
        differing = sorted(name for name in {*saved, *wanted} if saved.get(name) != wanted.get(name))
        if differing:
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} is whole but does not fit the model and optimiser this code "
                "builds:\n"
                + "\n".join(f"  {name}: checkpoint {saved.get(name)}, code {wanted.get(name)}" for name in differing)
            )

    def _read_seal(self, step: int) -> dict[str, Any] | None:
        try:
            return json.loads((self._seals / str(step)).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return _NO_SEAL

    def _seal(self, step: int, metrics: dict[str, float]) -> None:
        seal = {"digest": tree_digest(self.directory / str(step)), "metrics": metrics}
        write_whole(self._seals / str(step), json.dumps(seal))

    def _finish(self, step: int, metrics: dict[str, float]) -> None:
        """In the background: wait until a checkpoint is committed, seal it, and drop the seals of those removed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._seal(step, metrics)
            kept = {str(step) for step in self.steps()}
            for seal in self._seals.iterdir():
                if seal.name not in kept:
                    seal.unlink()
        except Exception as error:
            self._error = error

    def _pass_over(self, step: int, problem: str) -> None:
        """Set a spoiled checkpoint aside: a new one will be written in its place."""
        log.warning("checkpoint %s %s; the one before it is used", self.directory / str(step), problem)
        self._manager.close()
        shutil.rmtree(self.directory / str(step))
        (self._seals / str(step)).unlink(missing_ok=True)
        self._manager = self._open()

    def _failure(self, error: Exception) -> CheckpointError:
        # Orbax raises a failure again at its later calls, in every thread; a new manager knows nothing of it.
        with suppress(Exception):
            self._manager.close()
        self._manager = self._open()
        intact = self.steps()
        kept = f"checkpoints {', '.join(map(str, intact))} are intact" if intact else "there is no earlier checkpoint"
        return CheckpointError(f"could not save step {self._saving} in {self.directory}: {error}; {kept}")


def _raised_anyway(record: logging.LogRecord) -> bool:
    """Keep the pages of tracebacks off the screen that Orbax logs of a failure before raising it."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


_NO_SEAL: dict[str, Any] = {"digest": None, "metrics": {}}
"""In place of a seal that cannot be read: it vouches for nothing."""


def _describe_arrays(tree: Any) -> dict[str, str]:
    """Dtype and shape of every array, by its dotted name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{array.dtype}{list(array.shape)}"
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }
