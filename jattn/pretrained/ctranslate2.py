"""`model.bin` of CTranslate2, binary version 6, as its Python package writes it.

The format: `ModelSpec._serialize` in https://github.com/OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py.
"""

from typing import Any

import numpy as np

from jattn.pretrained.mapped import BFLOAT16, Bytes, Stored, check_shape, check_size

VERSION = 6
MAGIC = VERSION.to_bytes(4, "little")
DTYPES = (np.dtype("<f4"), np.dtype("<i1"), np.dtype("<i2"), np.dtype("<i4"), np.dtype("<f2"), BFLOAT16)
"""By their numbers in the file."""


def read_ctranslate2(source: Bytes) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Where the variables are, and the specification's name and revision; an alias is a tensor at the same place.

    Quantised variables come as the integers that they are, beside their scales, `NAME_scale`.

    Raises:
      ValueError: it is damaged, of another version, or something follows.
    """
    source.skip(len(MAGIC), "the version")
    metadata = {"specification": _name(source, "the specification"), "revision": source.number("I", "the revision")}
    stored: dict[str, Stored] = {}
    for _ in range(source.count("I", "variables")):
        name = _new_name(source, stored)
        rank = source.number("B", f"the rank of tensor {name!r}")
        shape = [source.number("I", f"the shape of tensor {name!r}") for _ in range(rank)]
        kind = source.number("B", f"the type of tensor {name!r}")
        if kind >= len(DTYPES):
            raise source.error(f"the type of tensor {name!r} must be below {len(DTYPES)}; got {kind}")
        size = source.number("I", f"the size of tensor {name!r}")
        stored[name] = Stored(source.position, size, check_shape(source, shape, name), DTYPES[kind])
        check_size(source, stored[name].shape, DTYPES[kind], size, name)
        source.skip(size, f"tensor {name!r}")
    for _ in range(source.count("I", "aliases")):
        name, other = _new_name(source, stored), _name(source, "an alias's variable")
        if other not in stored:
            raise source.error(f"alias {name!r} must name a variable; got {other!r}")
        stored[name] = stored[other]
    if source.position != len(source):
        raise source.error(f"the file must end after its aliases; {len(source) - source.position} bytes follow")
    return stored, metadata


def _new_name(source: Bytes, stored: dict[str, Stored]) -> str:
    name = _name(source, "a variable's name")
    if name in stored:
        raise source.error(f"tensor {name!r} must come once; it comes again")
    return name


def _name(source: Bytes, what: str) -> str:
    name = source.name("H", what)
    if not name.endswith("\0"):
        raise source.error(f"{what} must end with a zero byte; got {name!r:.50}")
    return name[:-1]
