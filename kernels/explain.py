"""Which implementation would run where, in which tiles, and why: told without running anything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.attention import attention
from kernels.dense import derivatives
from kernels.equations import called
from kernels.implementation import PLATFORMS, Operation
from kernels.pairwise import primitive

_OPERATIONS: dict[Any, Operation] = {
    derivatives.flash_attention_p: derivatives.operation,
    primitive.pairwise_sum_p: primitive.operation,
}


@dataclass(frozen=True)
class Explanation:
    """How one step of a computation would run on one platform."""

    step: str
    platform: str
    implementation: str
    tiles: str
    reason: str


def explain(
    query: Float[Array, "*batch query_length heads width"] | jax.ShapeDtypeStruct,
    key: Float[Array, "*batch key_length kv_heads width"] | jax.ShapeDtypeStruct,
    value: Float[Array, "*batch key_length kv_heads value_width"] | jax.ShapeDtypeStruct,
    **options: Any,
) -> list[Explanation]:
    """Print which implementation `attention(query, key, value, **options)` and its gradient would run, and why.

    For each platform that a program can be lowered for; nothing is computed. Returns the lines.

    Raises:
      ValueError, TypeError: as `attention` does.
    """
    if options.get("implementation") == "reference":
        lines = [Explanation("everything", name, "reference", "none", "asked for") for name in PLATFORMS]
    else:
        lines = list(_lines(query, key, value, options))
    print(_table(lines))
    return lines


def _lines(query: Any, key: Any, value: Any, options: dict[str, Any]) -> Iterator[Explanation]:
    traced = {name: options[name] for name in ("bias", "sink") if options.get(name) is not None}
    fixed = {name: option for name, option in options.items() if name not in traced}

    def attend(query: Array, key: Array, value: Array, traced: dict[str, Array]) -> Any:
        return attention(query, key, value, **traced, **fixed)

    def total(*arguments: Any) -> Array:
        return sum(
            leaf.astype(jnp.float32).sum()
            for leaf in jax.tree.leaves(attend(*arguments))
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        )  # pyright: ignore[reportReturnType]

    forward = list(_calls(jax.make_jaxpr(attend)(query, key, value, traced).jaxpr))
    both = list(_calls(jax.make_jaxpr(jax.grad(total, (0, 1, 2, 3)))(query, key, value, traced).jaxpr))
    for step, equations in (("forward", forward), ("gradient", both[len(forward) :])):
        for equation in equations:
            for platform in PLATFORMS:
                yield _explain(step, platform, equation)


def _explain(step: str, platform: str, equation: Any) -> Explanation:
    operation = _OPERATIONS[equation.primitive]
    step = f"{step}: {operation.function.replace('_', ' ')}"
    shapes = [variable.aval for variable in equation.invars]
    try:
        choice = operation.choose(platform, *shapes, **equation.params)
    except ValueError as error:
        return Explanation(step, platform, "none", "none", str(error))
    tiles = f"{choice.tiles.rows} x {choice.tiles.columns}" if choice.tiles else "by rule"
    name = f"{choice.name}, interpreted" if choice.interpret else choice.name
    return Explanation(step, platform, name, tiles, choice.reason)


def _calls(jaxpr: Any) -> Iterator[Any]:
    """The calls of our operations in a program, in its order."""
    for equation in jaxpr.eqns:
        if equation.primitive in _OPERATIONS:
            yield equation
        if inner := called(equation):
            yield from _calls(inner[0])


def _table(lines: Sequence[Explanation]) -> str:
    rows = [tuple(Explanation.__dataclass_fields__), *(tuple(vars(line).values()) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
