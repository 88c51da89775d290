"""Trackers: TensorBoard's event files read back record by record, and what is said when a package is missing."""

import struct
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from jattn.runs.metrics import MetricRecord, MetricWriter
from jattn.runs.trackers import TRACKERS, TensorBoard, open_tracker


def scalars_of(directory: Path) -> dict[tuple[int, str], float]:
    """Every scalar in the event files of a directory: TFRecord framing is length, checksum, payload, checksum."""
    found = {}
    for path in sorted(directory.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    return found


def test_tensorboard_gets_scalars_and_means_over_seeds_stage_by_stage(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path / "tensorboard")
    for stage in ("one", "two"):
        record = MetricRecord(tmp_path / f"{stage}.jsonl", stage, [tracker])
        record.write(5, {"loss": 2.0, "error": [1.0, 3.0], "matrix": [[1.0]]})
        record.close()
    tracker.close()
    for stage in ("one", "two"):
        assert scalars_of(tmp_path / "tensorboard" / stage) == {(5, "loss"): 2.0, (5, "error"): 2.0}


def test_every_tracker_is_a_metric_writer() -> None:
    for kind in TRACKERS.values():
        assert issubclass(kind, MetricWriter)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'jattn\[{name}\]'"):
        open_tracker(name, tmp_path)


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tracker must be one of tensorboard, wandb, mlflow; got 'board'"):
        open_tracker("board", tmp_path)
