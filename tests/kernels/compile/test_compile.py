"""Compiling for hardware that is not there: with the compilers where they are installed, and without."""

import json
import time
from pathlib import Path

import pytest

from jattn.cli import main
from kernels.compile import CompileError, CompilerMissing, GpuKernel, TpuKernel, compile_kernel, toolchain
from kernels.compile.toolchain import require

CASES = Path(__file__).parent / "cases.py"


def need(kind: str) -> None:
    try:
        require(kind)
    except CompilerMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def without_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def no_compiler_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends before the compiler is reached can be tested without one."""
    monkeypatch.setattr("kernels.compile.require", lambda kind: None)
    monkeypatch.setattr("kernels.compile.versions", lambda kind: {})


def test_a_kernel_compiles_for_a_tpu():
    need("tpu")
    report = compile_kernel(f"{CASES}:double", "v5e", rows=512)
    (kernel,) = report.kernels
    assert isinstance(kernel, TpuKernel)
    assert kernel.name.startswith("double")
    assert report.refused is None
    assert report.memory == {"argument": 512 * 128 * 4, "output": 512 * 128 * 4, "temp": 0}
    assert kernel.vector_spills == 0
    assert min(kernel.bundles or 0, kernel.cycles or 0, kernel.vmem_bytes or 0) > 0
    assert report.flop_per_cycle == pytest.approx(512 * 128 / (report.cycles or 0))
    assert report.versions.keys() == {"jax", "jaxlib", "libtpu"}


def test_a_kernel_compiles_for_a_gpu():
    need("gpu")
    report = compile_kernel(f"{CASES}:product", "h100")
    assert report.refused is None
    (kernel,) = report.kernels
    assert isinstance(kernel, GpuKernel)
    assert (kernel.name, kernel.spill_store_bytes) == ("product", 0)
    assert kernel.registers > 0
    assert kernel.instructions is None or {"HGMMA", "HMMA"} & kernel.instructions.keys()
    assert "ptxas" in report.versions


def test_too_much_vmem_is_refused(capsys: pytest.CaptureFixture[str]):
    need("tpu")
    assert main(["compile", f"{CASES}:hoard", "--target", "v5e"]) == 3
    assert "The compiler refused it" in capsys.readouterr().out


def test_json_says_that_it_is_an_estimate(capsys: pytest.CaptureFixture[str]):
    need("tpu")
    assert main(["compile", f"{CASES}:no_kernel", "--target", "v5e", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "not measurements" in printed["what"]
    assert printed["kernels"] == []


@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_missing_compilers_name_the_extra(target: str, without_compilers: None, capsys: pytest.CaptureFixture[str]):
    assert main(["compile", f"{CASES}:double", "--target", target]) == 2
    assert "pip install 'jattn[compile]'" in capsys.readouterr().err


def test_time_runs_out(no_compiler_needed: None):
    began = time.monotonic()
    with pytest.raises(CompileError, match="took longer than 4 s"):
        compile_kernel(f"{CASES}:sleep", "v5e", timeout=4)
    assert time.monotonic() - began < 60


def test_a_crash_is_told(no_compiler_needed: None):
    with pytest.raises(CompileError, match="was killed by SIGABRT"):
        compile_kernel(f"{CASES}:abort", "v5e")


def test_a_faulty_case_is_told_apart_from_a_refusal(no_compiler_needed: None):
    with pytest.raises(CompileError, match=r"failed before it was compiled: KeyError: 'no such tile' .*cases\.py"):
        compile_kernel(f"{CASES}:broken", "v5e")


def test_an_unknown_kernel_lists_its_neighbours(capsys: pytest.CaptureFixture[str]):
    assert main(["compile", "jax-tpu-flas", "--target", "v5e"]) == 2
    assert "jax-tpu-flash, jax-tpu-flash-backward" in capsys.readouterr().err


def test_a_kernel_for_another_kind_of_target(capsys: pytest.CaptureFixture[str]):
    assert main(["compile", "jax-tpu-flash", "--target", "h100"]) == 2
    assert "is for a tpu, and the target is a gpu" in capsys.readouterr().err
