"""Tile functions of statistics: sums over attention weights, given the log-sum-exp of every row."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kernels.loop import Pairs
from kernels.pairwise.tiles import Scores, matmul

Sum = Callable[..., Array]
"""`sum(pairs, scores, weights, lse, *extra)`: one sum over the weights of a tile; `extra` are operands of its own."""


@dataclass(frozen=True)
class Sums:
    """Several sums at once. Operands: query, key, lse, the bias if there is one, then those of each sum in turn."""

    scores: Scores
    sums: tuple[Sum, ...]
    extras: tuple[int, ...]
    """How many operands each sum has of its own."""

    def __call__(
        self, pairs: Pairs, query: Array, key: Array, lse: Array, *others: Array
    ) -> tuple[Float[Array, "..."], ...]:
        bias, others = others[: self.scores.biased], others[self.scores.biased :]
        scores = self.scores(pairs, query, key, *bias)
        weights = lax.exp(scores - lse)
        results = []
        for sum_of, count in zip(self.sums, self.extras, strict=True):
            results.append(sum_of(pairs, scores, weights, lse, *others[:count]))
            others = others[count:]
        return tuple(results)


@dataclass(frozen=True)
class Entropy:
    """Σ_j weights (lse - score): every term is at least 0, so nothing cancels."""

    def __call__(self, pairs: Pairs, scores: Array, weights: Array, lse: Array) -> Float[Array, "rows 1"]:
        # Without weight there is no term, though lse - score is infinite there.
        surprise = lax.select(weights > 0, lse - scores, lax.full_like(scores, 0))
        return (weights * surprise).sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Position:
    """Σ_j weights j."""

    def __call__(self, pairs: Pairs, scores: Array, weights: Array, lse: Array) -> Float[Array, "rows 1"]:
        return (weights * pairs.columns.astype(weights.dtype)).sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class SquaredDeviation:
    """Σ_j weights (j - mean)²."""

    def __call__(self, pairs: Pairs, scores: Array, weights: Array, lse: Array, mean: Array) -> Float[Array, "rows 1"]:
        deviation = pairs.columns.astype(weights.dtype) - mean
        return (weights * deviation * deviation).sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class OverRows:
    """Σ_i rows_i weights."""

    def __call__(
        self, pairs: Pairs, scores: Array, weights: Array, lse: Array, rows: Array
    ) -> Float[Array, "1 columns"]:
        return (weights * rows).sum(axis=0, keepdims=True)


@dataclass(frozen=True)
class OverColumns:
    """Σ_j weights."""

    def __call__(self, pairs: Pairs, scores: Array, weights: Array, lse: Array) -> Float[Array, "rows 1"]:
        return weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Nearness:
    """Σ_j weights (window - |i + offset - j|) over the pairs nearer than the window."""

    window: int
    offset: int

    def __call__(self, pairs: Pairs, scores: Array, weights: Array, lse: Array) -> Float[Array, "rows 1"]:
        distance = jnp.abs(pairs.rows + self.offset - pairs.columns)
        near = jnp.maximum(self.window - distance, 0).astype(weights.dtype)
        return (weights * near).sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class OfValues:
    """Σ_j weights values_j."""

    def __call__(
        self, pairs: Pairs, scores: Array, weights: Array, lse: Array, values: Array
    ) -> Float[Array, "rows 1 width"]:
        return matmul(weights, lax.squeeze(values, (0,)), 1, 0)[:, None]
