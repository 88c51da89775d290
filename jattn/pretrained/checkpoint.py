"""Checkpoints that torch.save wrote, in its zip format, without torch and without executing the pickle in them.

The archive holds one folder: `data.pkl`, a pickle in which tensors are views of storages, and a record `data/KEY` for
each storage, neither compressed. See torch/serialization.py and caffe2/serialize/inline_container.h of PyTorch.
"""

import io
import math
import struct
import zipfile
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from jattn.pretrained.mapped import BFLOAT16, LARGEST_COUNT, LONGEST_NAME, Bytes, Stored, check_apart, check_shape
from jattn.pretrained.pickles import LARGEST_PICKLE, Call, Global, Persistent, read_pickle

MAGIC = b"PK\x03\x04"
LARGEST_DIRECTORY = 8 << 20
"""Bytes of the archive's table of contents."""
DEEPEST = 16
"""Dictionaries in dictionaries."""
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and lengths of the name and of the extra field, which stand before a record's bytes."""
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
DTYPES = {
    Global("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Float": np.dtype("<f4"),
        "Half": np.dtype("<f2"),
        "BFloat16": BFLOAT16,
        "Double": np.dtype("<f8"),
        "Long": np.dtype("<i8"),
        "Int": np.dtype("<i4"),
        "Short": np.dtype("<i2"),
        "Char": np.dtype("<i1"),
        "Byte": np.dtype("<u1"),
        "Bool": np.dtype("bool"),
    }.items()
}


class Record(NamedTuple):
    """Where a file of the archive has its bytes."""

    begin: int
    size: int


def read_checkpoint(source: Bytes) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Where the tensors of (nested) dictionaries are, and their numbers and texts; names are joined by dots.

    Lists are left out, with what is in them.

    Raises:
      ValueError: it is damaged, compressed, big-endian, or holds other objects than tensors and plain data.
    """
    records = _records(source)
    roots = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise source.error(f"must be an archive of torch.save, with one folder with data.pkl; it has {len(roots)}")
    root = roots[0]
    order = _content(source, records.get(f"{root}byteorder", Record(0, 0)))
    if order not in (b"", b"little"):
        raise source.error(f"the byte order must be little; got {order!r}")
    pickled = records[f"{root}data.pkl"]
    if pickled.size > LARGEST_PICKLE:
        raise source.error(f"{root}data.pkl must have at most {LARGEST_PICKLE} bytes; got {pickled.size}")
    try:
        tree = read_pickle(_content(source, pickled), {REBUILD, *DTYPES})
    except ValueError as error:
        raise source.error(f"{root}data.pkl: {error}") from None
    stored: dict[str, Stored] = {}
    plain: dict[str, Any] = {}
    for name, value in _leaves(source, tree).items():
        if isinstance(value, Call):
            stored[name] = _tensor(source, name, value, records, root)
        elif isinstance(value, str | int | float | None):
            plain[name] = value
    return stored, plain


class _Directory(io.FileIO):
    """A file of which only so much is read at a time as the archive's table of contents may take."""

    def __init__(self, source: Bytes):
        super().__init__(source.path)
        self._source = source

    def read(self, size: int | None = -1, /) -> bytes:
        left = len(self._source) - self.tell()
        if (left if size is None or size < 0 else size) > LARGEST_DIRECTORY:
            raise ValueError(f"the table of contents must have at most {LARGEST_DIRECTORY} bytes")
        return super().read(size)


def _records(source: Bytes) -> dict[str, Record]:
    try:
        with _Directory(source) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error) as error:
        raise source.error(f"cannot be read as a zip archive: {error}") from None
    records: dict[str, Record] = {}
    spans = []
    for entry in entries:
        name = entry.orig_filename
        if name in records:
            raise source.error(f"{name!r:.200} must come once in the archive; it comes again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise source.error(f"{name!r:.200} must be neither compressed nor encrypted")
        begin = entry.header_offset
        header = source.content[begin : begin + LOCAL_HEADER.size].tobytes() if begin >= 0 else b""
        if len(header) < LOCAL_HEADER.size or not header.startswith(MAGIC):
            raise source.error(f"{name!r:.200} must have a header of its own; there is none at byte {begin}")
        _, name_size, extra_size = LOCAL_HEADER.unpack(header)
        records[name] = Record(begin + LOCAL_HEADER.size + name_size + extra_size, entry.file_size)
        spans.append((begin, records[name].begin - begin + entry.file_size, name))
    check_apart(source, spans)
    return records


def _content(source: Bytes, record: Record) -> bytes:
    return source.content[record.begin : record.begin + record.size].tobytes()


def _leaves(source: Bytes, tree: Any) -> dict[str, Any]:
    """What is in the dictionaries, by names joined with dots. A dictionary that is in two places is refused: this is
    how a small pickle would make a tree without end."""
    leaves: dict[str, Any] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, int, Any]] = [("", 0, tree)]
    while waiting:
        name, depth, value = waiting.pop()
        if not isinstance(value, dict):
            if name in leaves:
                raise source.error(f"{name!r:.200} must come once; it comes again")
            leaves[name] = value
            continue
        if id(value) in seen or depth == DEEPEST:
            raise source.error(f"dictionaries must be a tree of depth at most {DEEPEST}; {name!r:.200} is not")
        seen.add(id(value))
        for key, item in value.items():
            path = f"{name}.{key}" if name else str(key)
            if len(path) > LONGEST_NAME:
                raise source.error(f"names must have at most {LONGEST_NAME} characters; got {path!r:.50}...")
            waiting.append((path, depth + 1, item))
    if len(leaves) > LARGEST_COUNT:
        raise source.error(f"must hold at most {LARGEST_COUNT} tensors and values; got {len(leaves)}")
    return dict(reversed(leaves.items()))


def _tensor(source: Bytes, name: str, call: Call, records: dict[str, Record], root: str) -> Stored:
    match call.arguments:
        case (
            Persistent(("storage", Global() as kind, str() as key, str(), int() as count)),
            int() as offset,
            tuple() as size,
            tuple() as stride,
            *_,
        ) if kind in DTYPES and call.function == REBUILD and all(type(n) is int for n in (*size, *stride)):
            dtype = DTYPES[kind]
        case _:
            raise source.error(f"tensor {name!r:.200} must be a view of a storage of torch's; got {call!r:.200}")
    record = records.get(f"{root}data/{key}")
    if record is None or record.size != count * dtype.itemsize:
        found = "none" if record is None else record.size
        raise source.error(
            f"storage {key!r:.50} of tensor {name!r:.200} must have {count} numbers, {dtype}; its bytes: {found}"
        )
    shape = check_shape(source, size, name)
    if len(stride) != len(shape) or offset < 0 or any(step < 0 for step in stride):
        raise source.error(f"tensor {name!r:.200} has shape {shape}, strides {stride!r:.200} and offset {offset}")
    used = 0 if 0 in shape else 1 + sum((axis - 1) * step for axis, step in zip(shape, stride, strict=True))
    if offset + used > count or math.prod(shape) > count:
        raise source.error(
            f"tensor {name!r:.200} of shape {shape}, strides {stride!r:.200}, offset {offset}, must lie in its "
            f"storage of {count} numbers"
        )
    whole = used == math.prod(shape) and stride == _contiguous(shape)
    view = None if whole else partial(_strided, dtype=dtype, shape=shape, stride=stride)
    return Stored(record.begin + offset * dtype.itemsize, used * dtype.itemsize, shape, dtype, view)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _strided(
    content: UInt8[np.ndarray, " size"], dtype: np.dtype, shape: tuple[int, ...], stride: tuple[int, ...]
) -> Shaped[np.ndarray, "..."]:
    numbers = content.view(dtype)
    steps = tuple(step * dtype.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(numbers, shape, steps, writeable=False)
