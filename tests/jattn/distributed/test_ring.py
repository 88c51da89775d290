"""Attention around a ring is attention on one device: on virtual devices, across processes, in values and memory."""

import socket
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh
from processes import reports, start

from jattn.distributed import ring_attention, sequence_parallel_attention

TOLERANCE = 1e-5


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
