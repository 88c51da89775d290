"""Tiles that were measured to be the fastest, one JSON file for each kind of device, written by `jattn tune`.

A kernel takes the tiles it is called with; else those of the table; else those its own rule gives. Tables lie in the
folder that JATTN_TILES names, by default `~/.cache/jattn/tiles`, and are read when a program is lowered.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax

from kernels.schedule import Tiles

FOLDER = "JATTN_TILES"
BACKENDS = {"cuda": "gpu"}
"""What JAX calls a backend where that is not the platform's name."""


@dataclass(frozen=True)
class Entry:
    """The fastest tiles of an implementation of an operation, for head dim, dtype and length; seconds a call took."""

    operation: str
    implementation: str
    head_dim: int
    dtype: str
    length: int
    rows: int
    columns: int
    seconds: float


def table_path(device_kind: str) -> Path:
    """The file of a kind of device."""
    folder = os.environ.get(FOLDER)
    name = re.sub(r"[^a-z0-9]+", "-", device_kind.lower()).strip("-")
    return (Path(folder) if folder else Path.home() / ".cache/jattn/tiles") / f"{name}.json"


def find_tiles(
    device_kind: str | None, operation: str, implementation: str, head_dim: int, dtype: Any, length: int
) -> Tiles | None:
    """The tiles of the table, or None: of the longest length in it that is not above this one, else of the shortest.

    Raises:
      ValueError: the table is there and cannot be read; it is named.
    """
    if device_kind is None:
        return None
    path = table_path(device_kind)
    if not path.exists():
        return None
    wanted = (operation, implementation, head_dim, str(dtype))
    fitting = [
        entry
        for entry in read_table(path)
        if (entry.operation, entry.implementation, entry.head_dim, entry.dtype) == wanted
    ]
    if not fitting:
        return None
    shorter = [entry for entry in fitting if entry.length <= length]
    best = max(shorter, key=lambda e: e.length) if shorter else min(fitting, key=lambda e: e.length)
    return Tiles(best.rows, best.columns)


def read_table(path: Path) -> tuple[Entry, ...]:
    """The entries of a table.

    Raises:
      ValueError: it is no table.
    """
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> tuple[Entry, ...]:
    try:
        plain = json.loads(path.read_text())
        entries = tuple(Entry(**entry) for entry in plain["entries"])
        for entry in entries:
            Tiles(entry.rows, entry.columns)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of tiles; write a new one with jattn tune: {error}") from None
    return entries


def table_text(entries: list[Entry], versions: dict[str, str]) -> str:
    """A table as it is written."""
    return json.dumps({"versions": versions, "entries": [asdict(entry) for entry in entries]}, indent=1) + "\n"


def device_kind(platform: str) -> str | None:
    """The kind of the device that a program is lowered for, where it is known: not when it is exported."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        return described.device_kind
    if jax.default_backend() == BACKENDS.get(platform, platform):
        return jax.devices()[0].device_kind
    return None
