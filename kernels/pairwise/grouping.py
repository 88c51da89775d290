"""Which results of a sum over pairs one kernel can make: those that want the same tiles visited in the same order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kernels.loop import Output
from kernels.shapes import per_entry


@dataclass(frozen=True)
class Order:
    """For which tiles there are results (rows, columns, or both), and the problem axes that they are summed over."""

    own: tuple[bool, bool]
    summed: tuple[int, ...]


def order_of(output: Output, problems: tuple[int, ...]) -> Order:
    """The order that an output wants; one that varies along neither rows nor columns comes in parts, by rows.

    What has a number for each entry of a block table comes in parts for tiles, of each problem.
    """
    axes = len(problems)
    if per_entry(output.shape, axes):
        return Order((True, False), ())
    rows, columns = output.shape[axes] > 1, output.shape[axes + 1] > 1
    summed = tuple(axis for axis, size in enumerate(problems) if size > 1 and output.shape[axis] == 1)
    return Order((rows or not columns, columns), summed)


def grouped(
    operands: Sequence[Any], mask: Any, outputs: Sequence[Output], axes: int
) -> tuple[tuple[int, ...], dict[Order, list[int]]]:
    """The sizes of the problem axes, and for each order the numbers of the outputs that want it."""
    arrays = (*operands, *jax.tree.leaves(mask), *outputs)
    problems: Any = jnp.broadcast_shapes(*(array.shape[:axes] for array in arrays))
    groups: dict[Order, list[int]] = {}
    for number, output in enumerate(outputs):
        groups.setdefault(order_of(output, problems), []).append(number)
    return problems, groups
