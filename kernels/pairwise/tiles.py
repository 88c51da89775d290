"""Tile functions: what a sum over query-key pairs adds up in one tile, and their derivatives, again tile functions.

A tile function maps the tiles of its operands to the tiles of its outputs, for one problem. A tile has axes (rows,
columns, *features) with 1 for rows or columns that the operand does not vary along; numbers are float32 (or
float64). Tile functions are written in `lax` and may be differentiated and transposed; as frozen dataclasses they
compare by what they compute, so that compiled programs are found again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kernels.loop import Pairs

TileFunction = Callable[..., Sequence[Array]]
"""`function(pairs, *operands)`: sums over the pairs of a tile, each over those of rows and columns that it has 1 of."""


@dataclass(frozen=True)
class Tangent:
    """The derivative of a tile function along tangents of some of its operands: (operands, tangents) to outputs."""

    function: TileFunction
    moved: tuple[bool, ...]
    """Which of the function's operands have a tangent."""

    def __call__(self, pairs: Pairs, *operands: Float[Array, "..."]) -> Sequence[Float[Array, "..."]]:
        values, tangents = operands[: len(self.moved)], operands[len(self.moved) :]

        def along(*moving: Array) -> Sequence[Array]:
            given = iter(moving)
            return self.function(
                pairs, *(next(given) if moved else value for value, moved in zip(values, self.moved, strict=True))
            )

        start = tuple(value for value, moved in zip(values, self.moved, strict=True) if moved)
        return jax.jvp(along, start, tangents)[1]


@dataclass(frozen=True)
class Shape:
    """How an operand varies: along rows, along columns, and its features."""

    rows: bool
    columns: bool
    features: tuple[int, ...]


@dataclass(frozen=True)
class Transpose:
    """The transpose of a tile function in those operands in which it is linear.

    (the other operands, cotangents of some outputs) to cotangents of the linear operands.
    """

    function: TileFunction
    linear: tuple[Shape | None, ...]
    """For each of the function's operands, its shape if it is linear."""
    pulled: tuple[bool, ...]
    """Which of the function's outputs have a cotangent; that of the others is 0."""

    def __call__(self, pairs: Pairs, *operands: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
        count = sum(shape is None for shape in self.linear)
        others, cotangents = operands[:count], operands[count:]
        rows, columns = pairs.rows.shape[0], pairs.columns.shape[1]
        dtype = cotangents[0].dtype
        wanted = [
            jax.ShapeDtypeStruct((rows if s.rows else 1, columns if s.columns else 1, *s.features), dtype)
            for s in self.linear
            if s is not None
        ]

        def of_linear(*linear: Array) -> tuple[Array, ...]:
            given, fixed = iter(linear), iter(others)
            outputs = self.function(pairs, *(next(fixed) if s is None else next(given) for s in self.linear))
            return tuple(output for output, pulled in zip(outputs, self.pulled, strict=True) if pulled)

        return jax.linear_transpose(of_linear, *wanted)(tuple(cotangents))


@dataclass(frozen=True)
class Scores:
    """scale · query keyᵀ, softcapped, plus bias; -inf where a pair is not allowed. Part of sums, not one."""

    scale: float
    softcap: float | None
    biased: bool

    def __call__(self, pairs: Pairs, query: Array, key: Array, *bias: Array) -> Float[Array, "rows columns"]:
        scores = matmul(lax.squeeze(query, (1,)) * self.scale, lax.squeeze(key, (0,)), 1, 1)
        if self.softcap is not None:
            scores = self.softcap * lax.tanh(scores / self.softcap)
        if self.biased:
            scores = scores + bias[0]
        return scores if pairs.allowed is None else lax.select(pairs.allowed, scores, lax.full_like(scores, -jnp.inf))


def matmul(a: Float[Array, "i j"], b: Float[Array, "k l"], contract_a: int, contract_b: int) -> Float[Array, "m n"]:
    """The product of two matrices over one axis of each."""
    return lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())))


@dataclass(frozen=True)
class WeightedSums:
    """(query, key, value, lse, bias?) to (Σ weights value, Σ weights) over keys, weights = exp(scores - lse).

    lse is whatever the weights are divided by; +inf for a row without weights.
    """

    scores: Scores

    def __call__(
        self, pairs: Pairs, query: Array, key: Array, value: Array, lse: Array, *bias: Array
    ) -> tuple[Float[Array, "rows 1 width"], Float[Array, "rows 1"]]:
        weights = lax.exp(self.scores(pairs, query, key, *bias) - lse)
        return matmul(weights, lax.squeeze(value, (0,)), 1, 0)[:, None], weights.sum(axis=1, keepdims=True)
