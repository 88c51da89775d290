"""The grid on which every kernel works: problems (batch, key head, query group), rows (queries), columns (keys).

Public arrays have the layout of `jax.nn.dot_product_attention`; inside, every array has the grid's five axes
(batch, kv_heads, groups, rows, columns) and then its features, with 1 for an axis it does not vary along: a query
is (batch, kv_heads, groups, rows, 1, width), a key (batch, kv_heads, 1, 1, columns, width). An array that is summed
over an axis is a 1 there too, so that grouped queries and broadcast biases are no special case anywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped


@dataclass(frozen=True)
class Grid:
    """How many problems, rows and columns one call of attention has."""

    batch: tuple[int, ...]
    kv_heads: int
    groups: int
    rows: int
    columns: int

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """Of scores, biases and masks as a caller sees them: (*batch, heads, query_length, key_length)."""
        return (*self.batch, self.kv_heads * self.groups, self.rows, self.columns)

    @property
    def problems(self) -> tuple[int, int, int]:
        return math.prod(self.batch), self.kv_heads, self.groups

    @property
    def sizes(self) -> tuple[int, int]:
        return self.rows, self.columns

    def queries(
        self, query: Shaped[Array, "*batch rows heads width"]
    ) -> Shaped[Array, "flat kv_heads groups rows 1 width"]:
        """From the caller's layout to the grid's; also for anything of a row and head with features behind."""
        groups = () if self.groups == 1 else (self.groups,)
        split = query.reshape(self.problems[0], self.rows, self.kv_heads, *groups, query.shape[-1])
        moved = jnp.moveaxis(split, 1, -2)[..., None, :]
        return moved if groups else moved[:, :, None]

    def keys(self, key: Shaped[Array, "*batch columns kv_heads width"]) -> Shaped[Array, "flat kv_heads 1 1 columns w"]:
        """From the caller's layout to the grid's; also for values."""
        flat = key.reshape(self.problems[0], self.columns, self.kv_heads, key.shape[-1])
        return jnp.moveaxis(flat, 1, 2)[:, :, None, None]

    def outputs(
        self, array: Shaped[Array, "flat kv_heads groups rows 1 width"]
    ) -> Shaped[Array, "*batch rows heads width"]:
        """From the grid's layout to the caller's."""
        flat = array[:, :, 0, :, 0] if self.groups == 1 else array[:, :, :, :, 0]
        moved = jnp.moveaxis(flat, -2, 1)
        return moved.reshape(*self.batch, self.rows, self.kv_heads * self.groups, array.shape[-1])

    def rows_of_heads(
        self, array: Shaped[Array, "flat kv_heads groups rows *one"]
    ) -> Shaped[Array, "*batch heads rows"]:
        """A number for each row, (*batch, heads, query_length)."""
        return array.reshape(*self.batch, self.kv_heads * self.groups, self.rows)

    def scores(self, name: str, array: Shaped[Array, "..."]) -> Shaped[Array, "#flat #kv_heads #groups #rows #columns"]:
        """An array that broadcasts to `scores_shape`, by the rules of numpy, on the grid; its broadcast axes stay 1.

        Raises:
          ValueError: it does not broadcast, or reads some batch axes and not others in a way that has no 1.
        """
        want = self.scores_shape
        shape = (1,) * (len(want) - array.ndim) + array.shape
        if array.ndim > len(want) or any(have not in (1, full) for have, full in zip(shape, want, strict=True)):
            raise ValueError(
                f"{name} must broadcast to (*batch, heads, query_length, key_length) = {want}; got {array.shape}"
            )
        *batch, heads, rows, columns = shape
        flat = 1
        if any(size != 1 for size in batch):
            flat, batch = self.problems[0], list(self.batch)
        array = jnp.broadcast_to(array.reshape(shape), (*batch, heads, rows, columns))
        split = (1, 1) if heads == 1 else (self.kv_heads, self.groups)
        return array.reshape(flat, *split, rows, columns)


def attention_grid(query: Array, key: Array, value: Array) -> Grid:
    """The grid of query, key and value, in the layout of `jax.nn.dot_product_attention` with any leading batch axes.

    Raises:
      ValueError: rank below 3, a width of 0, or batch, key length, width or head counts that do not fit.
      TypeError: an argument is not floating point, or the three differ in dtype.
    """
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim < 3:
            raise ValueError(f"{name} must have shape (*batch, length, heads, width); got {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point; got {array.dtype}")
        if array.dtype != query.dtype:
            raise TypeError(f"{name} must have the query's dtype {query.dtype}; got {array.dtype}")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"key and value must agree but for their width; got {key.shape} and {value.shape}")
    if query.shape[-1] == 0:
        raise ValueError(f"query must have a width of at least 1; got {query.shape}")
    if query.ndim != key.ndim or query.shape[:-3] != key.shape[:-3] or query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must agree in batch and width; got {query.shape} and {key.shape}")
    heads, kv_heads = query.shape[-2], key.shape[-2]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"query heads must be a multiple of key heads (grouped queries); got {heads} and {kv_heads}")
    return Grid(query.shape[:-3], kv_heads, heads // kv_heads, query.shape[-3], key.shape[-3])


def per_entry(shape: Sequence[int], axes: int) -> bool:
    """Whether an array on the grid has a number for each entry of a block table.

    It has 1 for rows and columns, and behind them axes of (row blocks, entries, 1); a tile of it is one number.
    """
    return len(shape) == axes + 5


def tile_features(shape: Sequence[int], axes: int) -> tuple[int, ...]:
    """The axes of a tile of an array on the grid behind its rows and columns."""
    return () if per_entry(shape, axes) else tuple(shape[axes + 2 :])


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """What sums are kept in: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def over_problems(function: Callable[..., Any], arrays: Sequence[Array], axes: int) -> Any:
    """A function of one problem's arrays, for every problem: mapped over the first `axes` axes, of which 1s broadcast.

    Where no array varies along an axis the results have a 1 there.
    """
    if axes == 0:
        return function(*arrays)
    mapped = tuple(None if array.shape[0] == 1 else 0 for array in arrays)
    arrays = [array if axis == 0 else array[0] for array, axis in zip(arrays, mapped, strict=True)]

    def inner(*one: Array) -> Any:
        return over_problems(function, one, axes - 1)

    if all(axis is None for axis in mapped):
        return jax.tree.map(lambda result: result[None], inner(*arrays))
    return jax.vmap(inner, in_axes=mapped)(*arrays)
