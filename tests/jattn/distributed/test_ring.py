"""Attention around a ring is attention on one device: on virtual devices, across processes, in values and memory."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh

import jattn
from jattn.distributed import ring_attention, sequence_parallel_attention

HERE = Path(__file__).parent
SECONDS = 240
TOLERANCE = 1e-5


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    # JAX counts its devices once, so a process of its own; code that runs once need not be optimised.
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


def test_eight_devices_agree_with_one() -> None:
    (found,) = reports([start("on_devices.py", "derivatives", "variants", "narrow", "inside")])
    errors = {"derivatives": found["derivatives"], **found["variants"]}
    assert len(errors) == 6
    for case, measured in errors.items():
        for name, error in measured.items():
            assert error < TOLERANCE, f"{case}, {name}: {error}"
    # bfloat16 in, against float32 of the same numbers: a rounding is 2 ** -8.
    assert found["narrow"]["forward"] < 2**-7
    assert found["narrow"]["gradient"] < 2**-6
    assert found["inside"]["forward"] < TOLERANCE
    assert "check_vma=False" in found["inside"]["complaint"]


def test_memory_of_the_gradient_is_linear_in_the_shard() -> None:
    (report,) = reports([start("on_devices.py", "memory")])
    memory = report["memory"]
    # Twice the devices and twice the keys: a device that kept those that pass would hold 1 MB more.
    assert abs(memory["8 2048"] - memory["4 2048"]) < 2**16
    assert memory["8 4096"] < 2.1 * memory["8 2048"]


def test_four_processes_agree_with_one_device() -> None:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    running = [start("on_processes.py", f"localhost:{port}", "4", str(number)) for number in range(4)]
    for report in reports(running):
        assert (report["devices"], report["here"]) == (8, 2)
        for name, error in report["errors"].items():
            assert error < TOLERANCE, f"{name}: {error}"


def call(
    length: int = 4, *, key_heads: int = 2, kind: AxisType = AxisType.Auto, segments: int | None = None, **options: Any
) -> Any:
    mesh = Mesh(jax.devices()[:1], ("ring",), axis_types=(kind,))
    query, key = jnp.ones((1, length, 4, 8)), jnp.ones((1, length, key_heads, 8))
    ids = None if segments is None else jnp.zeros((1, segments), jnp.int32)
    return sequence_parallel_attention(
        query, key, key, **{"mesh": mesh, "axis_name": "ring", "segment_ids": ids, **options}
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"axis_name": "sequence"}, r"axis_name must be among the mesh's axes \('ring',\); got 'sequence'"),
        ({"heads_axis": "model"}, "heads_axis must be among the mesh's axes"),
        ({"kind": AxisType.Explicit}, "mesh must have axes of type Auto"),
        ({"length": 5, "causal": True}, r"query's length must be a multiple of 2 .* got \(1, 5, 4, 8\)"),
        ({"arranged": True}, "arranged needs causal"),
        ({"segments": 3}, r"segment_ids must be of shape \(1, 4\), or \(4,\); got \(1, 3\)"),
        ({"key_heads": 3}, "query heads must be a multiple of key heads"),
        ({"softcap": -1.0}, "softcap must be above 0; got -1.0"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call(**options)


def test_a_ring_needs_its_axis() -> None:
    array = jnp.ones((1, 4, 2, 8))
    with pytest.raises(ValueError, match=r"axis_name must be an axis of the jax.shard_map around; got 'ring'"):
        ring_attention(array, array, array, axis_name="ring")
