"""Files of weights, of any format that is read: tensors by name, and what the file tells of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jattn.pretrained import checkpoint, ctranslate2, gguf, safetensors
from jattn.pretrained.mapped import Bytes, Tensors

FORMATS = {
    "GGUF": (0, gguf.MAGIC, gguf.read_gguf),
    "zip checkpoint of torch": (0, checkpoint.MAGIC, checkpoint.read_checkpoint),
    "safetensors": (8, safetensors.MAGIC, safetensors.read_safetensors),
    "CTranslate2": (0, ctranslate2.MAGIC, ctranslate2.read_ctranslate2),
}
"""Where a file has the bytes that it is known by, these bytes, and what reads it."""


@dataclass(frozen=True)
class Weights:
    """An open file of weights.

    Attributes:
      path: the file.
      format: a name of `FORMATS`.
      tensors: by the names they have in the file; each is read, and dequantised to float32 where it is quantised, when
        it is asked for. Matrices of linear maps are (out, in), as all of these formats have them. Numbers that are
        not quantised keep their type and are views of the mapped file.
      metadata: what else the file holds, by name.
    """

    path: Path
    format: str
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any]


def open_weights(path: Path | str) -> Weights:
    """Open a GGUF, safetensors, CTranslate2 or zip-format torch file, known by how it begins and not by its name.

    The header is read and checked whole: names, types, and that every tensor lies in the file. Nothing in a file is
    executed, and the memory that the header takes is bounded whatever the file claims.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is none of these, or damaged; names the file, the tensor or field, what came and what must come.
    """
    source = Bytes(Path(path))
    head = source.content[:16].tobytes()
    for name, (place, magic, read) in FORMATS.items():
        if head.startswith(magic, place):
            stored, metadata = read(source)
            return Weights(source.path, name, Tensors(source, stored), metadata)
    raise source.error(f"must begin as one of {', '.join(FORMATS)}; it begins with {head.hex()}")
