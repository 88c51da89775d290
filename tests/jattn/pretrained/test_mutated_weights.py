"""Small whole files of weights with bytes changed, put in, or taken out: read, or refused with a ValueError, in little
memory and with no warning."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import (
    ctranslate2,
    ctranslate2_variable,
    gguf,
    gguf_field,
    gguf_tensor,
    outcome,
    pickled,
    safetensors,
    string,
    tensor,
    write_checkpoint,
)

NUMBERS = np.arange(24, dtype=np.float32).tobytes()


def gguf_file(path: Path) -> bytes:
    fields = [
        gguf_field("a.number", 6, struct.pack("<f", 0.5)),
        gguf_field("a.text", 8, string("words")),
        gguf_field("a.list", 9, struct.pack("<IQ", 8, 2) + string("one") + string("two")),
        gguf_field("a.numbers", 9, struct.pack("<IQ", 5, 3) + struct.pack("<3i", 1, 2, 3)),
    ]
    tensors = [gguf_tensor("plain", [6, 4], 0, 0), gguf_tensor("q8_0", [32, 2], 8, 96)]
    return gguf(fields, tensors, NUMBERS + bytes(range(68)))


def safetensors_file(path: Path) -> bytes:
    header = {
        "__metadata__": {"format": "np"},
        "a": {"dtype": "F32", "shape": [2, 5], "data_offsets": [0, 40]},
        "b": {"dtype": "BF16", "shape": [28], "data_offsets": [40, 96]},
    }
    return safetensors(json.dumps(header), NUMBERS)


def ctranslate2_file(path: Path) -> bytes:
    variables = [ctranslate2_variable("a", [4, 6], 0, NUMBERS), ctranslate2_variable("b", [], 1, b"\1")]
    return ctranslate2(variables, [("c", "a")])


def checkpoint_file(path: Path) -> bytes:
    tree = {"model": {"a": tensor("0", 24, (4, 6), (6, 1)), "b": tensor("0", 24, (2, 3), (1, 4), 5)}, "epoch": 3}
    write_checkpoint(path, pickled(tree), {"0": NUMBERS}, byteorder=b"little")
    return path.read_bytes()


INTEGERS = st.sampled_from([0, 1, 31, 127, 255, 256, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1])
CHANGES = st.one_of(
    st.integers(0, 255).map(lambda byte: bytes([byte])),
    st.binary(min_size=1, max_size=8),
    INTEGERS.map(lambda number: struct.pack("<Q", number)),
    INTEGERS.map(lambda number: struct.pack("<I", number % (1 << 32))),
)


@st.composite
def mutations(draw: st.DrawFn, whole: bytes) -> bytes:
    """The file with up to four changes at places over it, some of which change its length."""
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(whole)))
        new, gone = draw(CHANGES), draw(st.sampled_from(["as many", "none", "some"]))
        size = {"as many": len(new), "none": 0, "some": draw(st.integers(0, 40))}[gone]
        whole = whole[:place] + new + whole[place + size :]
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole


@pytest.mark.parametrize("build", [gguf_file, safetensors_file, ctranslate2_file, checkpoint_file])
def test_mutated_files(tmp_path: Path, build) -> None:
    path = tmp_path / "file"
    whole = build(path)
    expected = outcome(path, whole)
    assert isinstance(expected, dict)

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mutations(whole))
    def check(content: bytes) -> None:
        found = outcome(path, content)
        if content == whole:
            assert not isinstance(found, ValueError)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)

    check()


@pytest.mark.parametrize("build", [gguf_file, safetensors_file, ctranslate2_file, checkpoint_file])
def test_truncated_files_are_refused(tmp_path: Path, build) -> None:
    """At any length: nothing in these files may be missing."""
    path = tmp_path / "file"
    whole = build(path)
    for length in range(0, len(whole), 7):
        assert isinstance(outcome(path, whole[:length]), ValueError)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.sampled_from([*b"}])N(\x88\x89tuseabRQ0.", b"K\1", b"q\0", b"h\0", b"X\1\0\0\0a", b"\x85", b"\x86",
       b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n"]), max_size=40))  # fmt: skip
def test_pickles_of_any_opcodes(tmp_path_factory: pytest.TempPathFactory, opcodes: list[bytes | int]) -> None:
    content = b"".join(opcode if isinstance(opcode, bytes) else bytes([opcode]) for opcode in opcodes)
    path = tmp_path_factory.getbasetemp() / "pickle-of-opcodes"
    path.unlink(missing_ok=True)
    write_checkpoint(path, b"\x80\x02" + content + b".", {"0": NUMBERS})
    outcome(path, path.read_bytes())
