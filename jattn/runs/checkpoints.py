"""Checkpoints of one training stage: saved by Orbax in the background, each whole, sealed by a digest, or absent."""

import logging
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

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


class Checkpoints:
    """The checkpoints of a stage, under `directory/<step>`, with `digests/<step>` beside them.

    Orbax commits a checkpoint by renaming it, so a crash leaves it whole or not there. The digest, written once it
    is committed, tells later damage: what no longer matches its digest is passed over.
    """

    def __init__(self, directory: Path, *, keep: int = 2, best: Best | None = None):
        if keep < 1:
            raise ValueError(f"keep must be at least 1; got {keep}")
        self.directory = directory.resolve()
        self._digests = self.directory.with_name(f"{self.directory.name}.digests")
        self._digests.mkdir(parents=True, exist_ok=True)
        self._best = best
        self._saving = -1
        self._sealer: threading.Thread | None = None
        self._error: Exception | None = None
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if best is not None:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best.metric], n=1, reverse=best.mode == "min"
                )
            )
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self.directory, options=self._options)

    def save(self, step: int, state: Any, sidecar: dict[str, Any], metrics: dict[str, float]) -> None:
        """Start saving in the background; arrays are copied first, so the caller may overwrite them.

        Raises:
          CheckpointError: this save or the one before it failed (a full disk, say); older checkpoints are intact.
        """
        self.wait()
        if self._best is not None and self._best.metric not in metrics:
            raise ValueError(f"best.metric must be one of {sorted(metrics)}; got {self._best.metric!r}")
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), sidecar=ocp.args.JsonSave(sidecar)),
                metrics=metrics or None,
            )
        except Exception as error:
            raise self._failure(error) from error
        self._sealer = threading.Thread(target=self._seal, name="jattn_seal_checkpoint")
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
        return None if self._best is None else self._manager.best_step()

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None if there is none; says what it passed over.

        Args:
          template: arrays, or their shapes, in the structure, dtypes and shardings wanted.

        Raises:
          CheckpointError: the checkpoint is whole but its arrays are not those of the template.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        for step in reversed(self.steps()):
            seal = self._digests / str(step)
            if seal.exists() and seal.read_text() != tree_digest(self.directory / str(step)):
                self._pass_over(step, "does not match its digest")
                continue
            try:
                got = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(shapes), sidecar=ocp.args.JsonRestore()
                    ),
                )
            except Exception as error:
                if not seal.exists():  # the process died between commit and digest, so damage cannot be ruled out
                    self._pass_over(step, f"cannot be read ({error})")
                    continue
                raise CheckpointError(
                    f"checkpoint {self.directory / str(step)} is whole but does not fit the model and optimiser "
                    f"this code builds: {error}"
                ) from error
            return Restored(step, got["state"], got["sidecar"])
        return None

    def close(self) -> None:
        """Wait for the save under way and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _seal(self) -> None:
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            write_whole(self._digests / str(self._saving), tree_digest(self.directory / str(self._saving)))
            kept = {str(step) for step in self.steps()}
            for digest in self._digests.iterdir():
                if digest.name not in kept:
                    digest.unlink()
        except Exception as error:
            self._error = error

    def _pass_over(self, step: int, problem: str) -> None:
        """Set a spoiled checkpoint aside: a new one will be written in its place."""
        log.warning("checkpoint %s %s; the one before it is used", self.directory / str(step), problem)
        self._manager.close()
        shutil.rmtree(self.directory / str(step))
        (self._digests / str(step)).unlink(missing_ok=True)
        self._manager = self._open()

    def _failure(self, error: Exception) -> CheckpointError:
        intact = self.steps()
        kept = f"checkpoints {', '.join(map(str, intact))} are intact" if intact else "there is no earlier checkpoint"
        return CheckpointError(f"could not save step {self._saving} in {self.directory}: {error}; {kept}")
