"""Files of weights as memory-mapped bytes, read with every length checked against what is there."""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped, UInt8

LARGEST_COUNT = 100_000
"""Tensors, or fields of metadata, in one file."""
LONGEST_NAME = 4096
"""Bytes of a name."""
LARGEST_RANK = 8
LARGEST_AXIS = 1 << 62
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Bytes:
    """A file's bytes and a position in them; little-endian.

    Everything raises ValueError where the file ends before what is read does, which is known before memory is taken.
    """

    def __init__(self, path: Path):
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty")
        self.path = path
        self.content: UInt8[np.ndarray, " size"] = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        self.position = 0

    def __len__(self) -> int:
        return len(self.content)

    def error(self, message: str) -> ValueError:
        """What to raise: the file, then the message."""
        return ValueError(f"{self.path}: {message}")

    def take(self, size: int, what: str) -> bytes:
        """The next bytes."""
        begin = self.position
        self.skip(size, what)
        return self.content[begin : begin + size].tobytes()

    def skip(self, size: int, what: str) -> None:
        """Go over the next bytes."""
        left = len(self) - self.position
        if size > left:
            raise self.error(f"{what} must have {size} bytes at {self.position}; the file has {left} more")
        self.position += size

    def number(self, code: str, what: str) -> Any:
        """The next number, of a type by its letter in `struct`."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, code: str, what: str) -> int:
        """The next number, which says how many tensors or fields follow."""
        count = self.number(code, f"the number of {what}")
        if count > LARGEST_COUNT:
            raise self.error(f"the number of {what} must be at most {LARGEST_COUNT}; got {count}")
        return count

    def name(self, code: str, what: str) -> str:
        """The next text, after a number that says its length in bytes."""
        size = self.number(code, f"the length of {what}")
        if size > LONGEST_NAME:
            raise self.error(f"{what} must have at most {LONGEST_NAME} bytes; got {size}")
        return self.text(self.take(size, what), what)

    def text(self, content: bytes, what: str) -> str:
        """Bytes as UTF-8."""
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} must be UTF-8; {error}") from None


@dataclass(frozen=True)
class Stored:
    """Where the numbers of a tensor are in a file, of what type, and what shape they have.

    Attributes:
      begin: the first byte.
      size: bytes, of which a multiple is what one item of `dtype` has.
      shape: of the tensor, slowest axis first.
      dtype: of the numbers as they are stored; of blocks of quantised numbers, bytes.
      decode: makes the tensor of its bytes; by default they are taken as they are, in `shape`.
    """

    begin: int
    size: int
    shape: tuple[int, ...]
    dtype: np.dtype
    decode: Callable[[UInt8[np.ndarray, " size"]], Shaped[np.ndarray, "..."]] | None = None


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read when it is asked for and not kept.

    Numbers that are stored as they are used come as views of the mapped file, which cannot be written to.
    """

    def __init__(self, source: Bytes, stored: Mapping[str, Stored]):
        self._source = source
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "..."]:
        where = self._stored[name]
        content = self._source.content[where.begin : where.begin + where.size]
        if where.decode is not None:
            return where.decode(content)
        tensor = content.view(where.dtype).reshape(where.shape)
        return tensor if tensor.flags.aligned else tensor.copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would read the tensor
        return name in self._stored


def check_shape(source: Bytes, shape: Iterable[int], name: str) -> tuple[int, ...]:
    """A tensor's shape, of a rank that arrays can have.

    Raises:
      ValueError: the rank is too high, or an axis negative or beyond any file.
    """
    shape = tuple(shape)
    if len(shape) > LARGEST_RANK or not all(0 <= axis <= LARGEST_AXIS for axis in shape):
        raise source.error(
            f"tensor {name!r:.200} must have at most {LARGEST_RANK} axes, of 0 to {LARGEST_AXIS}; got {shape!r:.200}"
        )
    return shape


def check_size(source: Bytes, shape: tuple[int, ...], dtype: np.dtype, size: int, name: str) -> None:
    """A tensor has as many bytes as its shape and type say.

    Raises:
      ValueError: it has others.
    """
    expected = math.prod(shape) * dtype.itemsize
    if size != expected:
        raise source.error(f"tensor {name!r:.200}, {dtype} of shape {shape}, must have {expected} bytes; got {size}")


def check_apart(source: Bytes, spans: Iterable[tuple[int, int, str]]) -> None:
    """Spans of bytes (begin, size, name) are in the file, and none is in another.

    Raises:
      ValueError: one reaches out of the file or into the next.
    """
    end, before = 0, ""
    for begin, size, name in sorted(spans):
        if begin + size > len(source):
            raise source.error(
                f"{name!r} must end in the file, of {len(source)} bytes; it has bytes {begin} to {begin + size}"
            )
        if begin < end and size:
            raise source.error(f"{name!r} must begin after {before!r}, at byte {end} or later; it begins at {begin}")
        if size:
            end, before = begin + size, name
