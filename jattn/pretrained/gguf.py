"""GGUF files, versions 2 and 3, of llama.cpp: metadata, and tensors plain or quantised.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package undoes the quantisation. Its
own reader of the header is not used: it trusts lengths, so that a short file can keep it busy without end.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from jattn.pretrained.mapped import BFLOAT16, LARGEST_RANK, Bytes, Stored, check_apart, check_shape

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LARGEST_HEADER = 64 << 20
"""Bytes before the first tensor's numbers: metadata with the tokenizer, and what is told of the tensors."""
NUMBERS = {
    0: ("B", np.dtype("<u1")),
    1: ("b", np.dtype("<i1")),
    2: ("H", np.dtype("<u2")),
    3: ("h", np.dtype("<i2")),
    4: ("I", np.dtype("<u4")),
    5: ("i", np.dtype("<i4")),
    6: ("f", np.dtype("<f4")),
    7: ("?", np.dtype("bool")),
    10: ("Q", np.dtype("<u8")),
    11: ("q", np.dtype("<i8")),
    12: ("d", np.dtype("<f8")),
}
"""Types of metadata by their number: the letter in `struct`, and numpy's type."""
STRING, ARRAY = 8, 9
PLAIN = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    24: np.dtype("<i1"),
    25: np.dtype("<i2"),
    26: np.dtype("<i4"),
    27: np.dtype("<i8"),
    28: np.dtype("<f8"),
    30: BFLOAT16,
}
"""Types of tensors by their number that are not quantised."""


def read_gguf(source: Bytes) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Where the tensors are, and the metadata.

    Shapes are in the usual order, slowest axis first, so that a matrix is (out, in); the file has them the other way.
    Quantised tensors decode to float32. Arrays of metadata are numpy arrays, or tuples of strings.

    Raises:
      ValueError: it is damaged, big-endian, of another version, or has something that this does not read.
    """
    source.skip(len(MAGIC), "the magic number")
    version = source.number("I", "the version")
    if version not in VERSIONS:
        raise source.error(f"the version must be one of {VERSIONS}, little-endian; got {version}")
    tensors, fields = source.count("Q", "tensors"), source.count("Q", "fields")
    metadata: dict[str, Any] = {}
    for _ in range(fields):
        key = source.name("Q", "a field's name")
        if key in metadata:
            raise source.error(f"field {key!r} must come once; it comes again")
        metadata[key] = _value(source, source.number("I", f"the type of field {key!r}"), f"field {key!r}")
        _check_header(source)
    told = []
    for _ in range(tensors):
        told.append(_tensor(source))
        _check_header(source)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise source.error(f"field 'general.alignment' must be a power of two; got {alignment!r}")
    begin = -(-source.position // alignment) * alignment
    stored = {}
    for name, kind, shape, offset in told:
        if name in stored:
            raise source.error(f"tensor {name!r} must come once; it comes again")
        if offset % alignment:
            raise source.error(f"tensor {name!r} must begin at a multiple of {alignment}; its offset is {offset}")
        stored[name] = _stored(source, name, kind, shape, begin + offset)
    check_apart(source, ((where.begin, where.size, name) for name, where in stored.items()))
    return stored, metadata


def _check_header(source: Bytes) -> None:
    if source.position > LARGEST_HEADER:
        raise source.error(f"the header must have at most {LARGEST_HEADER} bytes; it goes on after {source.position}")


def _value(source: Bytes, kind: int, what: str) -> Any:
    if kind in NUMBERS:
        return source.number(NUMBERS[kind][0], what)
    if kind == STRING:
        return _string(source, what)
    if kind != ARRAY:
        raise source.error(f"{what} must be of a type from 0 to 12; got {kind}")
    kind = source.number("I", f"the type of what {what} lists")
    length = source.number("Q", f"the length of {what}")
    if kind in NUMBERS:
        dtype = NUMBERS[kind][1]
        return np.frombuffer(_take(source, length * dtype.itemsize, what), dtype)
    if kind != STRING:
        raise source.error(f"{what} must list numbers or strings; got type {kind}")
    if length > (LARGEST_HEADER - source.position) // 8:  # each has its length before it, in eight bytes
        raise source.error(f"{what} must list strings that the header has room for; got {length}")
    return tuple(_strings(source, length, what))


def _strings(source: Bytes, length: int, what: str) -> Iterator[str]:
    """As many strings, in less time than `_string` takes for each: a vocabulary has some hundred thousand."""
    content, position, end = source.content.data, source.position, min(len(source), LARGEST_HEADER)
    for _ in range(length):
        begin = position + 8
        position = begin + int.from_bytes(content[position:begin], "little")
        if position > end:
            raise source.error(f"{what} must end in the header, at byte {end} or before; it goes on to {position}")
        yield source.text(content[begin:position].tobytes(), what)
    source.position = position


def _string(source: Bytes, what: str) -> str:
    return source.text(_take(source, source.number("Q", f"the length of {what}"), what), what)


def _take(source: Bytes, size: int, what: str) -> bytes:
    if size > LARGEST_HEADER - source.position:
        raise source.error(f"{what} must end in the header, of at most {LARGEST_HEADER} bytes; it has {size}")
    return source.take(size, what)


def _tensor(source: Bytes) -> tuple[str, int, tuple[int, ...], int]:
    """Name, number of the type, shape, and offset."""
    name = source.name("Q", "a tensor's name")
    rank = source.number("I", f"the rank of tensor {name!r}")
    if rank > LARGEST_RANK:
        raise source.error(f"tensor {name!r} must have at most {LARGEST_RANK} axes; got {rank}")
    axes = [source.number("Q", f"the shape of tensor {name!r}") for _ in range(rank)]
    kind = source.number("I", f"the type of tensor {name!r}")
    return name, kind, check_shape(source, reversed(axes), name), source.number("Q", f"the offset of tensor {name!r}")


def _stored(source: Bytes, name: str, kind: int, shape: tuple[int, ...], begin: int) -> Stored:
    if kind in PLAIN:
        return Stored(begin, math.prod(shape) * PLAIN[kind].itemsize, shape, PLAIN[kind])
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("gguf is not installed: pip install 'jattn[weights]'") from error
    try:
        block, block_size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        dequantize(np.zeros((1, block_size), np.uint8), GGMLQuantizationType(kind))
    except (ValueError, KeyError, NotImplementedError):
        raise source.error(f"tensor {name!r} is of type {kind}, which is not read") from None
    if not shape or shape[-1] % block or 0 in shape:
        raise source.error(f"tensor {name!r} must have rows of whole blocks of {block}; its shape is {shape}")
    rows = (*shape[:-1], shape[-1] // block * block_size)
    decode = partial(_dequantise, kind=GGMLQuantizationType(kind), rows=rows)
    return Stored(begin, math.prod(rows), shape, np.dtype(np.uint8), decode)


def _dequantise(content: UInt8[np.ndarray, " size"], kind: Any, rows: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    from gguf.quants import dequantize

    together = math.gcd(math.prod(rows[:-1]), 16)  # rows as one: it takes them in little groups, and slowly
    with np.errstate(all="ignore"):  # scales may be anything
        tensor = dequantize(content.reshape(-1, together * rows[-1]), kind)
    return tensor.reshape(*rows[:-1], -1)
