"""The environment that compilers run in."""

from pathlib import Path

import pytest

from kernels.compile.toolchain import environment


def test_compilers_do_not_take_over_how_this_process_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests themselves compile at the lowest level, at which kernels spill that otherwise do not."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert "XLA_FLAGS" not in environment("tpu", Path("anywhere"))
