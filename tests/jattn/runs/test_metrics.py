"""The metric record: exact to the last bit, append-only, and cut back to what a checkpoint knows."""

import json
import math
from contextlib import closing
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jattn.runs.metrics import MetricRecord, read_metrics

FLOAT32 = st.floats(width=32)


class Listener:
    """A metric writer that keeps what it is told."""

    def __init__(self):
        self.heard: list[tuple] = []

    def write(self, stage, step, scalars) -> None:
        self.heard.append((stage, step, dict(scalars)))

    def close(self) -> None: ...


def write_all(path: Path, rows, writers=()) -> None:
    with closing(MetricRecord(path, "stage", writers)) as record:
        for step, metrics in rows:
            record.write(step, metrics)


@settings(deadline=None)
@given(
    st.lists(FLOAT32, min_size=1, max_size=5),
    hnp.arrays(np.float32, (3, 2), elements=FLOAT32),
)
def test_float32_comes_back_bit_for_bit(tmp_path_factory, scalars, array):
    path = tmp_path_factory.mktemp("metrics") / "stage.jsonl"
    rows = [(n, {"scalar": np.float32(x), "array": array + np.float32(0) * n}) for n, x in enumerate(scalars)]
    write_all(path, rows)
    steps, values = read_metrics(path)["scalar"]
    assert steps.tolist() == list(range(len(scalars)))
    bits = np.array(scalars, np.float32).view(np.uint32)
    same = values.astype(np.float32).view(np.uint32) == bits
    # Every not-a-number is written as the same one.
    assert (same | np.isnan(np.array(scalars))).all()
    assert np.isnan(values)[np.isnan(np.array(scalars))].all()
    _, arrays = read_metrics(path)["array"]
    assert arrays.shape == (len(scalars), 3, 2)
    np.testing.assert_array_equal(arrays[0].astype(np.float32), array)


@pytest.mark.parametrize("value", [0.1, 1e-45, 3.4028235e38, -0.0, 1 / 3])
def test_a_line_has_no_more_digits_than_it_needs(tmp_path, value):
    write_all(tmp_path / "m.jsonl", [(1, {"x": np.float32(value)})])
    line = (tmp_path / "m.jsonl").read_text()
    digits = line.split('"x":')[1].split("e")[0].strip("-}\n").replace(".", "").lstrip("0")
    assert len(digits) <= 9  # nine digits tell any two float32 apart
    assert np.float32(json.loads(line)["x"]).tobytes() == np.float32(value).tobytes()


def test_other_dtypes_come_back_too(tmp_path):
    rows = {
        "double": np.float64(0.1),
        "python": 0.1,
        "half": np.float16(0.1),
        "brain": ml_dtypes.bfloat16(0.1),
        "integers": np.array([2**31 - 1, -5], np.int32),
        "truth": np.array([True, False]),
    }
    write_all(tmp_path / "m.jsonl", [(1, rows)])
    back = {name: values[0] for name, (_, values) in read_metrics(tmp_path / "m.jsonl").items()}
    assert back["double"] == back["python"] == 0.1
    assert np.float16(back["half"]) == np.float16(0.1)
    assert ml_dtypes.bfloat16(back["brain"]) == ml_dtypes.bfloat16(0.1)
    assert back["integers"].tolist() == [2**31 - 1, -5]
    assert back["truth"].tolist() == [True, False]


def test_metrics_may_come_at_different_steps(tmp_path):
    rows = [(0, {"eval/error": 3.0}), (5, {"loss": 2.0}), (10, {"loss": 1.0}), (10, {"eval/error": 0.5})]
    write_all(tmp_path / "m.jsonl", rows)
    metrics = read_metrics(tmp_path / "m.jsonl")
    got = {name: (steps.tolist(), values.tolist()) for name, (steps, values) in metrics.items()}
    assert got == {"eval/error": ([0, 10], [3.0, 0.5]), "loss": ([5, 10], [2.0, 1.0])}


def test_writers_hear_scalars_and_means_over_seeds(tmp_path):
    listener = Listener()
    metrics = {"loss": np.float32(2.0), "seeds": np.array([1.0, 3.0]), "map": np.zeros((2, 2)), "none": np.zeros(0)}
    write_all(tmp_path / "m.jsonl", [(7, metrics)], [listener])
    assert listener.heard == [("stage", 7, {"loss": 2.0, "seeds": 2.0})]


@settings(deadline=None)
@given(st.integers(1, 6), st.data())
def test_a_record_is_cut_back_to_a_checkpoint(tmp_path_factory, lines, data):
    """Written, cut back at any line and written on, it is the record that was never cut."""
    directory = tmp_path_factory.mktemp("metrics")
    rows = [(n, {"loss": np.float32(1 / (n + 1))}) for n in range(lines)]
    write_all(directory / "whole.jsonl", rows)
    keep = data.draw(st.integers(0, lines), "lines the checkpoint knows")
    lengths = [0]
    with closing(MetricRecord(directory / "cut.jsonl", "stage")) as record:
        for step, metrics in rows:
            record.write(step, metrics)
            lengths.append(record.sync())
    whole = (directory / "whole.jsonl").read_bytes()
    assert lengths[-1] == len(whole)
    torn = data.draw(st.integers(0, 12), "bytes of a line under way")
    with open(directory / "cut.jsonl", "ab") as file:
        file.write(whole[:torn])
    with closing(MetricRecord(directory / "cut.jsonl", "stage")) as record:
        record.rewind(lengths[keep])
        for step, metrics in rows[keep:]:
            record.write(step, metrics)
    assert (directory / "cut.jsonl").read_bytes() == whole


def test_a_record_shorter_than_its_checkpoint_is_an_error(tmp_path):
    write_all(tmp_path / "m.jsonl", [(1, {"x": 1.0})])
    have = (tmp_path / "m.jsonl").stat().st_size
    with (
        closing(MetricRecord(tmp_path / "m.jsonl", "stage")) as record,
        pytest.raises(ValueError, match=rf"m\.jsonl must hold at least 999 bytes to resume from; it holds {have}"),
    ):
        record.rewind(999)
    assert (tmp_path / "m.jsonl").stat().st_size == have


def test_a_line_cut_short_is_left_out_wherever_it_is_cut(tmp_path):
    path = tmp_path / "m.jsonl"
    write_all(path, [(1, {"loss": 0.5}), (2, {"loss": 0.25})])
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(first, len(content)):
        path.write_bytes(content[:length])
        steps, values = read_metrics(path)["loss"]
        assert (steps.tolist(), values.tolist()) == ([1], [0.5]), length
    path.write_bytes(content[: first - 1])
    assert read_metrics(path) == {}


def test_no_record_is_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == {}


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1.0}', "nonsense"])
def test_a_record_that_is_none_names_file_and_line(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step":1,"loss":1.0}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2, is no line of a metric record"):
        read_metrics(path)


def test_infinities_survive(tmp_path):
    write_all(tmp_path / "m.jsonl", [(1, {"x": np.array([np.inf, -np.inf, np.nan], np.float32)})])
    values = read_metrics(tmp_path / "m.jsonl")["x"][1][0]
    assert values[0] == math.inf
    assert values[1] == -math.inf
    assert math.isnan(values[2])
