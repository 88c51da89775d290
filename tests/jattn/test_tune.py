"""`jattn tune`: the table it writes is the one that kernels read."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from jattn import tune
from kernels.schedule import Tiles
from kernels.tile_table import find_tiles, table_path


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JATTN_TILES", str(tmp_path / "tiles"))
    monkeypatch.setattr(tune, "SIDES", {"xla": (16,)})
    monkeypatch.setattr(tune, "HEADS", 1)
    monkeypatch.setattr(tune, "ROUNDS", 1)


def test_tiles_are_measured_written_and_found(quick: None) -> None:
    path, entries = tune.tune([8], ["float32"], [32])
    assert path == table_path("cpu")
    assert [entry.operation for entry in entries] == ["attention", "pairwise_sum"]
    for entry in entries:
        assert entry.seconds > 0
        assert find_tiles("cpu", entry.operation, "xla", 8, jnp.dtype("float32"), 32) == Tiles(16, 16)
    assert json.loads(path.read_text())["versions"]["jax"]


def test_the_fastest_is_kept() -> None:
    seconds = {Tiles(16, 16): 3.0, Tiles(32, 16): 1.0, Tiles(32, 32): 2.0}
    clocks = {tiles: lambda spent=spent: spent for tiles, spent in seconds.items()}
    entry = tune._fastest("attention", "xla", 8, "float32", 64, clocks)
    assert (entry.rows, entry.columns, entry.seconds) == (32, 16, 1.0)


def test_what_was_measured_before_stays(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_clock", lambda function, *arguments: lambda: 1.0)
    for length in (16, 32, 32):
        path, _ = tune.tune([8], ["float32"], [length])
    kept = [(entry["operation"], entry["length"]) for entry in json.loads(path.read_text())["entries"]]
    assert sorted(kept) == [("attention", 16), ("attention", 32), ("pairwise_sum", 16), ("pairwise_sum", 32)]


def test_tiles_that_do_not_compile_are_passed_over(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function, *arguments):
        raise RuntimeError("does not fit")

    monkeypatch.setattr(tune, "_clock", refuse)
    with pytest.raises(RuntimeError, match="no tiles compile for attention, head dim 8, float32, length 32"):
        tune.tune([8], ["float32"], [32])
