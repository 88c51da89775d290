"""The table of measured tiles: what is found in it, what is refused, and that kernels obey it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import kernels
from kernels.tile_table import Entry, find_tiles, table_path, table_text

ENTRIES = [
    Entry("attention", "xla", 8, "float32", length, rows, columns, 0.1)
    for length, rows, columns in ((64, 16, 8), (1024, 32, 16))
]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JATTN_TILES", str(tmp_path))
    path = table_path("cpu")
    path.write_text(table_text(ENTRIES, {"jax": "0"}))
    return path


def test_one_file_for_each_kind_of_device(table: Path) -> None:
    assert table.name == "cpu.json"
    assert table_path("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


@pytest.mark.parametrize(
    ("length", "found"), [(10, (16, 8)), (64, (16, 8)), (1023, (16, 8)), (1024, (32, 16)), (9999, (32, 16))]
)
def test_longest_length_that_is_not_above(table: Path, length: int, found: tuple[int, int]) -> None:
    assert find_tiles("cpu", "attention", "xla", 8, jnp.dtype("float32"), length) == kernels.Tiles(*found)


@pytest.mark.parametrize(
    "other",
    [
        ("TPU v5e", "attention", "xla", 8, "float32"),
        ("cpu", "pairwise_sum", "xla", 8, "float32"),
        ("cpu", "attention", "gpu", 8, "float32"),
        ("cpu", "attention", "xla", 16, "float32"),
        ("cpu", "attention", "xla", 8, "bfloat16"),
        (None, "attention", "xla", 8, "float32"),
    ],
)
def test_nothing_for_anything_else(table: Path, other: tuple) -> None:
    assert find_tiles(*other, 64) is None


def test_new_table_is_read(table: Path) -> None:
    assert find_tiles("cpu", "attention", "xla", 8, "float32", 64) == kernels.Tiles(16, 8)
    table.write_text(table_text([Entry("attention", "xla", 8, "float32", 64, 40, 48, 0.1)], {}))
    assert find_tiles("cpu", "attention", "xla", 8, "float32", 64) == kernels.Tiles(40, 48)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"entries": [{"rows": 1}]}', table_text([Entry("a", "x", 8, "f", 64, 0, 1, 1.0)], {})],
)
def test_broken_table_is_named(table: Path, content: str) -> None:
    table.write_text(content)
    with pytest.raises(ValueError, match=r"cpu.json is no table of tiles; write a new one with jattn tune"):
        find_tiles("cpu", "attention", "xla", 8, "float32", 64)


def test_kernels_obey_the_table_but_not_before_an_argument(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = jax.ShapeDtypeStruct((1, 64, 1, 8), jnp.float32)

    def forward_on_cpu(**options: object) -> kernels.Explanation:
        return next(line for line in kernels.explain(shape, shape, shape, **options) if line.platform == "cpu")

    assert forward_on_cpu().tiles == "16 x 8"
    assert forward_on_cpu(tiles=kernels.Tiles(24, 24)).tiles == "24 x 24"
    # What runs has them too: its loop reads 8 columns at a time.
    program = jax.jit(kernels.attention).lower(shape, shape, shape).as_text()
    assert "tensor<1x1x1x1x8x8xf32>" in program
    assert "tensor<1x1x1x1x64x8xf32>" in program
    monkeypatch.delenv("JATTN_TILES")
    monkeypatch.setenv("HOME", str(table.parent / "nobody"))
    assert forward_on_cpu().tiles == "by rule"
