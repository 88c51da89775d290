"""Small files of weights written by hand, as their formats are described; and what happens when one is opened."""

import struct
import tracemalloc
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jattn.pretrained import open_weights
from jattn.pretrained.pickles import Call, Global, Persistent

FLOAT = Global("torch", "FloatStorage")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
LITTLE_MEMORY = 16 << 20
"""Bytes that a file of a few kilobytes may take, with the libraries that reading it imports already there."""


def string(text: str | bytes, code: str = "<Q") -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack(code, len(content)) + content


def gguf_field(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def gguf_tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """What a GGUF file tells of a tensor; the shape fastest axis first, as it is there."""
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + axes + struct.pack("<IQ", kind, offset)


def gguf(fields: Sequence[bytes], tensors: Sequence[bytes], data: bytes, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields)) + b"".join((*fields, *tensors))
    return head + bytes(-len(head) % 32) + data


def safetensors(header: str | bytes, data: bytes = b"") -> bytes:
    return string(header) + data


def ctranslate2(variables: Sequence[bytes], aliases: Sequence[tuple[str, str]] = (), version: int = 6) -> bytes:
    head = struct.pack("<I", version) + string("WhisperSpec\0", "<H") + struct.pack("<I", 3)
    listed = b"".join(string(f"{name}\0", "<H") for pair in aliases for name in pair)
    return head + struct.pack("<I", len(variables)) + b"".join(variables) + struct.pack("<I", len(aliases)) + listed


def ctranslate2_variable(name: str, shape: Sequence[int], kind: int, data: bytes, size: int | None = None) -> bytes:
    told = string(f"{name}\0", "<H") + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return told + struct.pack("<BI", kind, len(data) if size is None else size) + data


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2 of plain data, of globals, and of calls and things kept outside, none of which is made."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + string(value, "<I")
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return _opcodes(function) + _opcodes(arguments) + b"R"
        case Persistent(identity):
            return _opcodes(identity) + b"Q"
        case tuple():
            return b"(" + b"".join(map(_opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case dict():
            items = b"".join(_opcodes(part) for item in value.items() for part in item)
            return b"ccollections\nOrderedDict\n)R(" + items + b"u"
    raise TypeError(f"{value!r} is no plain data")


def tensor(
    key: str, count: int, shape: Sequence[int], stride: Sequence[int], offset: int = 0, storage: Global = FLOAT
) -> Call:
    """What torch pickles for a tensor that is a view of a storage of `count` numbers."""
    kept = Persistent(("storage", storage, key, "cpu", count))
    return Call(REBUILD, (kept, offset, tuple(shape), tuple(stride), False, {}))


def write_checkpoint(
    path: Path, content: bytes, storages: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED, **others: bytes
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers)
        for name, more in others.items():
            archive.writestr(f"archive/{name}", more)


def outcome(path: Path, content: bytes) -> ValueError | dict[str, np.ndarray]:
    """The tensors of a file with that content, or the error; it has taken little memory either way."""
    path.unlink(missing_ok=True)  # what is still mapped must not change
    path.write_bytes(content)
    return outcome_of(path)


def outcome_of(path: Path) -> ValueError | dict[str, np.ndarray]:
    """As `outcome`, of a file that is there."""
    tracemalloc.start()
    try:
        result = dict(open_weights(path).tensors)
    except ValueError as error:
        result = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < LITTLE_MEMORY
    if isinstance(result, ValueError):
        assert str(result).startswith(str(path))
    return result
