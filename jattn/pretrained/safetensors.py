"""Safetensors files: https://github.com/huggingface/safetensors, of which the format is a page.

The package of that name is not used: it lets the last of two tensors of one name pass for both, and its arrays of
numpy have no bfloat16.
"""

import json
from typing import Any

import ml_dtypes
import numpy as np

from jattn.pretrained.mapped import BFLOAT16, LARGEST_COUNT, Bytes, Stored, check_apart, check_shape, check_size

MAGIC = b"{"  # after the header's length
LARGEST_HEADER = 8 << 20
"""Bytes of the JSON that tells where the tensors are."""
DTYPES = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


def read_safetensors(source: Bytes) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Where the tensors are, and the metadata, which is text.

    Raises:
      ValueError: it is damaged, tensors overlap or leave a gap, or one is of a type that this does not read.
    """
    size = source.number("Q", "the header's length")
    if size > LARGEST_HEADER:
        raise source.error(f"the header must have at most {LARGEST_HEADER} bytes; got {size}")
    text = source.text(source.take(size, "the header"), "the header")
    begin = source.position

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(table := dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice")
        return table

    try:
        header = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise source.error(f"the header must be JSON; {error}") from None
    if not isinstance(header, dict) or len(header) > LARGEST_COUNT:
        raise source.error(f"the header must be an object of at most {LARGEST_COUNT} tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise source.error("'__metadata__' must be an object of strings")
    stored = {name: _stored(source, name, entry, begin) for name, entry in header.items()}
    check_apart(source, ((where.begin, where.size, name) for name, where in stored.items()))
    told = sum(where.size for where in stored.values())
    if begin + told != len(source):
        raise source.error(f"tensors must fill the {len(source) - begin} bytes after the header; they have {told}")
    return stored, metadata


def _stored(source: Bytes, name: str, entry: Any, begin: int) -> Stored:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise source.error(f"tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise source.error(f"dtype of tensor {name!r} must be one of {', '.join(DTYPES)}; got {entry['dtype']!r:.50}")
    shape = check_shape(source, _counts(source, name, entry, "shape"), name)
    offsets = _counts(source, name, entry, "data_offsets")
    if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise source.error(f"data_offsets of tensor {name!r} must be where it begins and ends; got {offsets!r:.50}")
    check_size(source, shape, dtype, offsets[1] - offsets[0], name)
    return Stored(begin + offsets[0], offsets[1] - offsets[0], shape, dtype)


def _counts(source: Bytes, name: str, entry: dict[str, Any], field: str) -> list[int]:
    value = entry[field]
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise source.error(f"{field} of tensor {name!r} must be a list of whole numbers; got {value!r:.50}")
    return value
