"""Compile a Pallas kernel for a GPU or TPU that is not there, and read what its compiler says of it."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kernels.compile.case import KERNELS, Case, find_case
from kernels.compile.report import CompileError, CompilerMissing, GpuKernel, Report, TpuKernel, report_from_json
from kernels.compile.targets import TARGETS, find_target, kind_of
from kernels.compile.toolchain import environment, require, versions

__all__ = [
    "KERNELS",
    "TARGETS",
    "Case",
    "CompileError",
    "CompilerMissing",
    "GpuKernel",
    "Report",
    "TpuKernel",
    "compile_kernel",
]


def compile_kernel(case: str, target: str, *, timeout: int | float = 300.0, **parameters: Any) -> Report:
    """Compile a case for a target in a process of its own, and report what the compiler says.

    `case` is a name of `KERNELS`, "module:function" or "path/to/file.py:function"; the function takes `parameters` and
    returns a `Case`, or a tuple of its fields. A process of its own, because compilers abort where they should raise,
    keep code from one target for the next, and read their options once.
    """
    kind = kind_of(find_target(target))
    location = find_case(case, kind)
    require(kind)
    with tempfile.TemporaryDirectory(prefix="jattn-compile-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        order = {"case": case, "location": location, "target": target, "parameters": parameters}
        order["seconds"] = math.ceil(timeout) + 5  # the process ends by itself should this one be killed
        order["versions"] = versions(kind)
        (directory / "order.json").write_text(json.dumps(order))
        status = _run_child(directory, environment(kind, directory), timeout, f"{case} for {target}")
        result = directory / "result.json"
        if not result.exists():
            ending = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise CompileError(f"the compiler of {case} for {target} {ending}; it last said:\n{_last_words(directory)}")
        answer = json.loads(result.read_text())
    if "error" in answer:
        raise CompileError(answer["error"])
    return report_from_json(answer)


def _run_child(directory: Path, variables: dict[str, str], timeout: int | float, what: str) -> int:
    with open(directory / "output.txt", "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "kernels.compile", str(directory)],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that an assembler it started ends with it
        )
        try:
            return child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise CompileError(f"compiling {what} took longer than {timeout:g} s and was stopped") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _last_words(directory: Path) -> str:
    lines = (directory / "output.txt").read_text(errors="replace").splitlines()
    told = [line for line in lines if line.strip() and not line.startswith(("WARNING: All log", "I0000"))]
    return "\n".join(told[-15:]) or "nothing"
