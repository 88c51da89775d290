"""What can be asked about attention weights, and the answer.

Weights are those of the output, softmax over keys and sink: weights_ij = exp(score_ij - lse_i). A row that reads
nothing has no weights, and every sum over them is 0.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kernels.masks.algebra import Mask
from kernels.masks.positions import offset
from kernels.shapes import Grid
from kernels.trees import register_dataclass

Numbers = Array | np.ndarray


@register_dataclass
@dataclass(frozen=True, eq=False)
class Functional:
    """Σ_j weights_ij values_j, for any values: (*batch, key_length, kv_heads, width)."""

    values: Numbers
    name = "functional"

    def on(self, grid: Grid) -> Array:
        """The values, in the layout of keys.

        Raises:
          ValueError: they do not fit the keys.
        """
        want = (*grid.batch, grid.columns, grid.kv_heads)
        if self.values.shape[:-1] != want:
            raise ValueError(f"Functional.values must be of shape {want} and a width; got {self.values.shape}")
        return jnp.asarray(self.values)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Mass:
    """Σ_j weights_ij columns_j, the mass on sets of keys: (key_length, sets) or (*batch, key_length, sets)."""

    columns: Numbers
    name = "mass"

    def on(self, grid: Grid) -> Array:
        """The sets, in the layout of keys.

        Raises:
          ValueError: they do not fit the keys.
        """
        shape = self.columns.shape
        if len(shape) < 2 or shape[-2] != grid.columns or shape[:-2] not in ((), grid.batch):
            raise ValueError(
                f"Mass.columns must be of shape (key_length, sets) or (*batch, key_length, sets) with batch "
                f"{grid.batch} and key_length {grid.columns}; got {shape}"
            )
        want = (*grid.batch, grid.columns, grid.kv_heads, shape[-1])
        return jnp.broadcast_to(jnp.asarray(self.columns)[..., None, :], want)


@register_dataclass
@dataclass(frozen=True, eq=False)
class ColumnSums:
    """Σ_i rows_i weights_ij: the attention that each key receives.

    rows weighs or chooses the queries that count, broadcasting to (*batch, heads, query_length); `within` is a mask
    that narrows the pairs that count: `Window(left=10, right=0, align="start") & ~Window(0, 0, "start")` leaves what a
    key gives to the next ten queries.
    """

    rows: Numbers | None = None
    within: Mask | None = None

    def weights(self, grid: Grid) -> Float[Array, "#flat #kv_heads #groups #rows 1"]:
        """What each query counts.

        Raises:
          ValueError: rows do not fit the queries.
        """
        if self.rows is None:
            return jnp.ones((1,) * 5)
        rows = jnp.asarray(self.rows)
        return grid.scores("ColumnSums.rows", rows[..., None]).astype(jnp.promote_types(rows.dtype, jnp.float32))


@register_dataclass
@dataclass(frozen=True, eq=False)
class RowSums:
    """Σ_j weights_ij over the pairs of a mask: a band around the query, a segment, its sinks."""

    within: Mask


@jax.tree_util.register_static
@dataclass(frozen=True)
class WindowedDistance:
    """Σ_j weights_ij min(|i + offset - j|, window); only tiles within the window are visited.

    `align` says the offset, as for masks.
    """

    window: int
    align: Literal["start", "end"] | int

    def offset(self, grid: Grid) -> int:
        """The key position of query 0.

        Raises:
          ValueError: the window is below 1, or the alignment unknown.
        """
        if self.window < 1:
            raise ValueError(f"WindowedDistance.window must be at least 1; got {self.window}")
        return int(offset(self.align, grid))


@jax.tree_util.register_static
@dataclass(frozen=True)
class TopKeys:
    """The `count` keys of largest weight in each row, and their weights, largest first."""

    count: int


Request = (
    Literal["lse", "entropy", "expected_position", "position_variance", "maximum"]
    | Functional
    | Mass
    | ColumnSums
    | RowSums
    | WindowedDistance
    | TopKeys
)
NAMES = ("lse", "entropy", "expected_position", "position_variance", "maximum")


@register_dataclass
@dataclass(frozen=True)
class Statistics:
    """What was asked for; None for what was not. Float32 or wider, and differentiable but for the indices.

    Attributes:
      lse: log Σ_j exp(score_ij), the sink's included; -inf for a row that reads nothing.
      entropy: -Σ_j weights_ij log weights_ij over the keys, in nats.
      expected_position: Σ_j weights_ij j, with j the key's index. The sink has no position.
      position_variance: Σ_j weights_ij (j - expected_position_i)².
      maximum, argmax: the largest weight of a row and its key, the first of equals; 0 and -1 where nothing is read.
      functional, mass: see the requests of the same names; the last axis is the functional or the set.
      column_sums: for each key.
      row_sums, windowed_distance: for each query.
      top_weights, top_keys: see `TopKeys`; 0 and -1 where a row reads fewer keys.
    """

    lse: Float[Array, "*batch heads query_length"] | None = None
    entropy: Float[Array, "*batch heads query_length"] | None = None
    expected_position: Float[Array, "*batch heads query_length"] | None = None
    position_variance: Float[Array, "*batch heads query_length"] | None = None
    maximum: Float[Array, "*batch heads query_length"] | None = None
    argmax: Int[Array, "*batch heads query_length"] | None = None
    functional: Float[Array, "*batch query_length heads width"] | None = None
    mass: Float[Array, "*batch query_length heads sets"] | None = None
    column_sums: Float[Array, "*batch heads key_length"] | None = None
    row_sums: Float[Array, "*batch heads query_length"] | None = None
    windowed_distance: Float[Array, "*batch heads query_length"] | None = None
    top_weights: Float[Array, "*batch heads query_length count"] | None = None
    top_keys: Int[Array, "*batch heads query_length count"] | None = None
