"""Changes of attention that stay inside fused attention: columns calibrated or dropped, rows overridden.

Each is a function that takes an attention function with the arguments of `kernels.attention` and returns another. No
array of queries by keys is made, and everything is differentiable in query, key and value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

import kernels
from kernels.statistics.requests import Request
from kernels.trees import register_dataclass

Attention = Callable[..., Any]
"""(query, key, value, *, mask, statistics, ...) -> output, or with statistics (output, Statistics)."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class DropColumns:
    """Some keys are not read; the weights of the others sum to one again. A row that has no other reads nothing."""

    columns: Bool[Array, "#batch #heads keys"]

    def __call__(self, attention: Attention) -> Attention:
        def dropped(query: Array, key: Array, value: Array, *, mask: Any = None, **options: Any) -> Any:
            return attention(query, key, value, mask=_restricted(mask, ~self.columns), **options)

        return dropped


@register_dataclass
@dataclass(frozen=True, eq=False)
class CalibrateColumns:
    """Weights on some keys are multiplied by a factor, and the others share what is freed as they share the rest.

    Yu et al. 2024 (arXiv 2406.15765), where the keys are attention sinks: A'_ij = factor · A_ij on them, and elsewhere
    A_ij (1 - factor · m_i) / (1 - m_i) with m_i the row's weight on them. Two attentions, over these keys and over the
    others, are combined by their log-sum-exps. A row that reads nothing else stays as it is. A factor above 1 gives
    them at most all of a row's weight.
    """

    columns: Bool[Array, "*#batch #heads keys"]
    factor: Array | float = 0.4

    def __call__(self, attention: Attention) -> Attention:
        def calibrated(
            query: Array,
            key: Array,
            value: Array,
            *,
            mask: Any = None,
            statistics: Sequence[Request] = (),
            **options: Any,
        ) -> Any:
            if statistics:
                raise NotImplementedError("statistics of calibrated attention; ask without the edit")
            (on_them, mass_on), (on_others, mass_off) = (
                _with_mass(attention(query, key, value, mask=_restricted(mask, kept), statistics=("lse",), **options))
                for kept in (self.columns, ~self.columns)
            )
            share = jnp.minimum(self.factor * jax.nn.sigmoid(_difference(mass_on, mass_off)), 1)
            share = jnp.where(mass_off == -jnp.inf, 1, share)[..., None].astype(on_them.dtype)
            return share * on_them + (1 - share) * on_others

        return calibrated


@register_dataclass
@dataclass(frozen=True, eq=False)
class CalibrateSinks:
    """Attention sinks are found, and `CalibrateColumns` used on them (Yu et al. 2024, arXiv 2406.15765).

    A key is a sink where the mean of the weights on it, over the rows that may read it, is above a threshold. Its
    columns are constants to differentiation.

    Attributes:
      heads: which heads are calibrated, alike for all texts or for each.
      threshold: 5 in the paper, over the number of keys; 0.1 in the released code, absolute.
      spare: how many keys at the start are never sinks.
      lengths: tokens of each text, where behind them is padding.
      relative: whether the threshold is divided by the number of keys.
    """

    heads: Bool[Array, "*#batch heads"]
    threshold: Array | float = 0.1
    factor: Array | float = 0.4
    spare: Array | int = 1
    lengths: Int[Array, " batch"] | None = None
    relative: bool = field(default=False, metadata={"static": True})

    def __call__(self, attention: Attention) -> Attention:
        def calibrated(query: Array, key: Array, value: Array, *, mask: Any = None, **options: Any) -> Any:
            if options.get("statistics"):
                raise NotImplementedError("statistics of calibrated attention; ask without the edit")
            options.pop("statistics", None)
            lengths = None if self.lengths is None else self.lengths[:, None]
            rows = None if lengths is None else (jnp.arange(query.shape[1]) < lengths)[:, None]
            _, found = attention(query, key, value, mask=mask, **options, statistics=(kernels.ColumnSums(rows),))
            scores = mean_column_weights(found.column_sums, query.shape[1], self.lengths)
            keys = key.shape[1] if lengths is None else lengths[..., None]
            threshold = self.threshold / keys if self.relative else self.threshold
            sinks = (scores > threshold) & (jnp.arange(key.shape[1]) >= self.spare) & self.heads[..., None]
            sinks = jax.lax.stop_gradient(sinks)
            return CalibrateColumns(sinks, self.factor)(attention)(query, key, value, mask=mask, **options)

        return calibrated


def mean_column_weights(
    column_sums: Float[Array, "*batch heads keys"], queries: int, lengths: Int[Array, " batch"] | None = None
) -> Float[Array, "*batch heads keys"]:
    """Mean weight on each key over the queries that may read it: the last `queries` of a causal row of keys.

    Args:
      column_sums: what `kernels.ColumnSums()` tells.
      lengths: tokens of each text, where behind them is padding, whose rows the sums are without.
    """
    places = jnp.arange(column_sums.shape[-1])
    keys = len(places) if lengths is None else lengths[:, None, None]
    return column_sums / jnp.clip(keys - places, 1, queries)


@register_dataclass
@dataclass(frozen=True, eq=False)
class OverrideRow:
    """One query of each text reads by weights of the caller's, which need not sum to one.

    Attributes:
      row: which query.
      weights: on each key.
      heads: in which heads; the others read as they do.
    """

    row: Int[Array, " batch"]
    weights: Float[Array, "#batch #heads keys"]
    heads: Bool[Array, " heads"]

    def __call__(self, attention: Attention) -> Attention:
        def overridden(query: Array, key: Array, value: Array, **options: Any) -> Any:
            read = attention(query, key, value, **options)
            output, *found = read if isinstance(read, tuple) else (read,)
            heads, groups = query.shape[2], query.shape[2] // value.shape[2]
            weights = jnp.broadcast_to(self.weights, (len(query), heads, key.shape[1]))
            grouped = weights.reshape(len(query), -1, groups, key.shape[1])
            given = jnp.einsum("bkgs,bskd->bkgd", grouped, value).reshape(len(query), 1, heads, -1)
            here = (jnp.arange(query.shape[1]) == self.row[:, None])[:, :, None, None] & self.heads[:, None]
            output = jnp.where(here, given.astype(output.dtype), output)
            return (output, *found) if found else output

        return overridden


def _restricted(mask: Any, columns: Bool[Array, "#batch #heads keys"]) -> Any:
    some = kernels.masks.Dense(columns[..., None, :])
    return some if mask is None else mask & some


def _with_mass(read: tuple[Array, kernels.Statistics]) -> tuple[Array, Float[Array, "batch queries heads"]]:
    output, found = read
    return output, jnp.moveaxis(jnp.asarray(found.lse), -2, -1)


def _difference(one: Array, other: Array) -> Array:
    """one - other, where either may be -inf, and gradients then are 0."""
    finite = (one > -jnp.inf) & (other > -jnp.inf)
    inner = jnp.where(finite, one, 0) - jnp.where(finite, other, 0)
    return jnp.where(finite, inner, jnp.where(one > other, jnp.inf, -jnp.inf))
