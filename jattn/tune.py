"""Measure which tiles are the fastest on this machine's device, and write them where kernels look (`jattn tune`)."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels
from jattn.bench.interleave import interleave
from jattn.runs.environment import version_of
from jattn.runs.files import write_whole
from kernels import Tiles, masks
from kernels.tile_table import Entry, read_table, table_path, table_text

log = logging.getLogger("jattn")
SIDES = {
    "xla": (128, 256, 512),
    "gpu": (32, 64, 128),
    "tpu": (256, 512, 1024),
}
"""Rows and columns that are tried, in every combination."""
HEADS = 8
ROUNDS = 5


def tune(head_dims: Sequence[int], dtypes: Sequence[str], lengths: Sequence[int]) -> tuple[Path, list[Entry]]:
    """Try tiles of causal attention, forward and backward, for every combination, and keep the fastest of each.

    What the table says of other combinations stays. Tiles that do not compile are passed over. The medians are of
    wall time, contenders in turn. Returns the table's path and the new entries.
    """
    device = jax.devices()[0]
    implementation = {"gpu": "gpu", "tpu": "tpu"}.get(str(device.platform), "xla")
    path = table_path(device.device_kind)
    entries = list(read_table(path)) if path.exists() else []
    new = []
    for head_dim in head_dims:
        for dtype in dtypes:
            for length in lengths:
                for operation, contenders in _contenders(implementation, head_dim, dtype, length).items():
                    entry = _fastest(operation, implementation, head_dim, dtype, length, contenders)
                    log.info("%s, head dim %d, %s, %d: %d x %d", operation, head_dim, dtype, length, *_sides(entry))
                    entries = [old for old in entries if _place(old) != _place(entry)] + [entry]
                    new.append(entry)
                    # After each, so that an interrupted session keeps what it has measured.
                    path.parent.mkdir(parents=True, exist_ok=True)
                    versions = {name: version_of(name) or "missing" for name in ("jax", "jaxlib")}
                    write_whole(path, table_text(entries, versions))
    return path, new


def _sides(entry: Entry) -> tuple[int, int]:
    return entry.rows, entry.columns


def _place(entry: Entry) -> tuple[Any, ...]:
    return entry.operation, entry.implementation, entry.head_dim, entry.dtype, entry.length


def _contenders(
    implementation: str, head_dim: int, dtype: str, length: int
) -> dict[str, dict[Tiles, Callable[[], float]]]:
    """For each operation the clocks of all tiles that compile."""
    rng = np.random.default_rng(0)
    shape = (1, length, HEADS, head_dim)
    arrays = tuple(jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(4))
    sides = [side for side in SIDES[implementation] if side <= length] or [length]
    found: dict[str, dict[Tiles, Callable[[], float]]] = {"attention": {}, "pairwise_sum": {}}
    for tiles in [Tiles(rows, columns) for rows in sides for columns in sides]:
        attend = partial(kernels.attention, mask=masks.Causal("start"), tiles=tiles)
        try:
            found["attention"][tiles] = _clock(jax.jit(attend), *arrays[:3])
            _, back = jax.jit(partial(jax.vjp, attend))(*arrays[:3])
            found["pairwise_sum"][tiles] = _clock(jax.jit(lambda back, pull: back(pull)), back, arrays[3])
        except Exception as error:  # each compiler refuses what does not fit in its own way
            log.info("passed over %s: %s", tiles, str(error).splitlines()[0])
    return found


def _clock(function: Any, *arguments: Any) -> Callable[[], float]:
    compiled = function.lower(*arguments).compile()

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        return time.perf_counter() - began

    return seconds


def _fastest(
    operation: str,
    implementation: str,
    head_dim: int,
    dtype: str,
    length: int,
    contenders: dict[Tiles, Callable[[], float]],
) -> Entry:
    if not contenders:
        raise RuntimeError(f"no tiles compile for {operation}, head dim {head_dim}, {dtype}, length {length}")
    names = {str(tiles): tiles for tiles in contenders}
    seconds = interleave({name: contenders[tiles] for name, tiles in names.items()}, ROUNDS)
    medians = {names[name]: float(np.median(values)) for name, values in seconds.items()}
    best = min(medians, key=lambda tiles: medians[tiles])
    return Entry(operation, implementation, head_dim, dtype, length, best.rows, best.columns, medians[best])
