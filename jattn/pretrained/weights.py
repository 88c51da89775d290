"""Files of weights, of any format that is read: tensors by name, and what the file tells of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jattn.pretrained.checkpoint import read_checkpoint
from jattn.pretrained.ctranslate2 import read_ctranslate2
from jattn.pretrained.gguf import read_gguf
from jattn.pretrained.mapped import Bytes, Tensors
from jattn.pretrained.safetensors import read_safetensors

FORMATS = {
    "GGUF": (lambda head: head[:4] == b"GGUF", read_gguf),
    "zip checkpoint of torch": (lambda head: head[:4] == b"PK\x03\x04", read_checkpoint),
    "safetensors": (lambda head: head[8:9] == b"{", read_safetensors),
    "CTranslate2": (lambda head: head[:4] == b"\x06\0\0\0", read_ctranslate2),
}
"""What a file begins with, and what reads it."""


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
    tensors: Mapping[str, Any]
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
    for name, (begins, read) in FORMATS.items():
        if begins(head):
            stored, metadata = read(source)
            return Weights(source.path, name, Tensors(source, stored), metadata)
    raise source.error(f"must begin as one of {', '.join(FORMATS)}; it begins with {head.hex()}")
