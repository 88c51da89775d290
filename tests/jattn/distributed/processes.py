"""Programs in processes of their own, as JAX counts its devices once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jattn

HERE = Path(__file__).parent
SECONDS = 240


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    # Code that runs once need not be optimised.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(Path(str(jattn.__file__)).parents[1]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, str(HERE / program), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def reports(running: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """The last line of each; all are ended whatever happens."""
    try:
        told = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    for process, (_, errors) in zip(running, told, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in told]
