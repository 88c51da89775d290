"""What attention over listed blocks costs on one core, against the listed fraction of what dense attention costs.

Float32, one batch entry, 8 heads of 64, no mask, CPU time; blocks are drawn at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels
from jattn.bench.bound import Bound, logged, medians
from jattn.bench.cpu import gradients, pin_to_one_core, timed
from jattn.bench.interleave import interleave
from kernels import masks

HEADS, WIDTH = 8, 64
ROUNDS = 5
BAR = Bound(1.3)


@dataclass(frozen=True)
class Case:
    """Blocks of so many tokens, of which each block of queries reads so many."""

    length: int
    block: int
    listed: int
    each_head: bool = False

    @property
    def fraction(self) -> float:
        """Of all pairs, those that are listed."""
        return self.listed * self.block / self.length

    def __str__(self) -> str:
        lists = "lists of each head" if self.each_head else "one list for all"
        return f"{self.length} tokens, {self.listed} of {self.length // self.block} blocks of {self.block}, {lists}"

    def table(self) -> masks.BlockTable:
        """Which blocks are listed."""
        blocks = self.length // self.block
        heads = (HEADS,) if self.each_head else ()
        drawn = np.argsort(np.random.default_rng(0).random((*heads, blocks, blocks)), axis=-1)[..., : self.listed]
        return masks.BlockTable(jnp.asarray(drawn, jnp.int32), rows=self.block, columns=self.block)


CASES = (
    Case(4096, 32, 32), Case(4096, 64, 16), Case(4096, 64, 16, each_head=True), Case(4096, 128, 8), Case(4096, 256, 4),
    Case(16_384, 64, 16), Case(16_384, 64, 16, each_head=True), Case(16_384, 128, 16),
)  # fmt: skip


def measure_block_sparse() -> list[dict[str, Any]]:
    """A row for each case and pass."""
    pin_to_one_core()
    return logged(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    for case in CASES:
        rng = np.random.default_rng(1)
        arrays = [jnp.asarray(rng.standard_normal((1, case.length, HEADS, WIDTH), np.float32)) for _ in range(4)]
        table = case.table()

        def listed(query: jax.Array, key: jax.Array, value: jax.Array, table: Any = table) -> jax.Array:
            return kernels.block_sparse_attention(query, key, value, table)[0]

        for backward in (False, True):
            programs = {"listed": listed, "dense": kernels.attention}
            given = arrays if backward else arrays[:3]
            contenders = {name: timed(gradients(each) if backward else each, given) for name, each in programs.items()}
            seconds = interleave(contenders, ROUNDS)
            what = f"{case}, {'forward and backward' if backward else 'forward'}"
            ratios = seconds["listed"] / (case.fraction * seconds["dense"])
            yield BAR.row(what, f"{case.fraction:g} of dense", ratios, medians(seconds))
