"""Metrics: an append-only local file that is the record, and writers that copy it elsewhere.

The record holds nothing that depends on the clock, so a run that was killed and resumed ends with the very same
bytes as one that was not. A checkpoint stores the file's length; resuming cuts the file back to it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class MetricWriter(Protocol):
    """Where metrics also go. Implement these two methods to plug in a tracker (see `jattn/runs/trackers.py`)."""

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Record scalars of a step. After a resume a step may be written again, with the same values."""
        ...

    def close(self) -> None: ...


class MetricRecord:
    """The append-only file `metrics/<stage>.jsonl`, one JSON object a line: {"step": n, name: number or list}.

    Numbers are written with the digits that give back the same float32; lists are arrays (a seed axis first,
    where there are seeds).
    """

    def __init__(self, path: Path, stage: str, writers: Sequence[MetricWriter] = ()):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stage = stage
        self._writers = writers
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (kept open; closed by close)

    def rewind(self, length: int) -> None:
        """Forget what was written after a checkpoint.

        Raises:
          ValueError: the file is shorter than the checkpoint says, so lines of the record were lost.
        """
        have = os.fstat(self._file.fileno()).st_size
        if have < length:
            raise ValueError(f"{self._file.name} must hold at least {length} bytes to resume from; it holds {have}")
        self._file.truncate(length)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one step's metrics: scalars or arrays. Writers get each metric's mean over its entries, scalars."""
        arrays = {name: np.asarray(value) for name, value in metrics.items()}
        line = {"step": step, **{name: _plain(array) for name, array in arrays.items()}}
        left = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:  # which does not say what could not be written
            raise OSError(error.errno, error.strerror, self._file.name) from error
        for writer in self._writers:
            scalars = {name: float(array.mean()) for name, array in arrays.items() if array.ndim <= 1 and array.size}
            writer.write(self.stage, step, scalars)

    def sync(self) -> int:
        """Push everything to the disk and return the record's length in bytes, for a checkpoint to keep."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every metric of a record: name -> (steps, values with the step axis first).

    A last line cut short by a crash is left out: the run that is resumed writes it again.

    Raises:
      ValueError: the file holds something else; the message names the file and the line.
    """
    series: dict[str, tuple[list[int], list[Any]]] = {}
    if not path.exists():
        return {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty, or a line cut short
        try:
            record = json.loads(line)
            step = record.pop("step")
            for name, value in record.items():
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no line of a metric record: {error!r}") from None
    try:
        return {name: (np.asarray(steps), np.asarray(values)) for name, (steps, values) in series.items()}
    except ValueError as error:
        raise ValueError(f"{path} holds a metric whose shape changes: {error}") from None


def _plain(array: np.ndarray) -> Any:
    if array.dtype == np.float32:  # the shortest digits that read back as the same float32
        return np.array([float(str(x)) for x in array.ravel()]).reshape(array.shape).tolist()
    return array.tolist()
