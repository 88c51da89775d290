"""What a mask is: one definition, three views, and how masks combine."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from kernels.shapes import Grid, over_problems

_Class = TypeVar("_Class")
Positions = Int[Array, "..."]
Coverage = tuple[Bool[Array, "..."], Bool[Array, "..."]]
"""May a tile allow something; does it surely allow everything. (*problems, row tiles, column tiles)."""


@dataclass(frozen=True)
class Tiling:
    """Rows and columns cut into tiles; the last of each may reach past the end.

    What is asked is about every pair of them, or with `listed` about the column tiles that are listed for each row
    tile; what is said has that shape.
    """

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    problem_axes: int = 3
    listed: Int[Array, "*problems row_tiles entries"] | None = dataclasses.field(default=None, compare=False)

    @property
    def row_tiles(self) -> int:
        return -(-self.rows // self.tile_rows)

    @property
    def column_tiles(self) -> int:
        return -(-self.columns // self.tile_columns)

    def corners(self) -> list[tuple[Positions, Positions]]:
        """Positions of the four corners of every tile, (row tiles, 1) and (1, column tiles) or those listed."""
        first_rows = jnp.arange(self.row_tiles)[:, None] * self.tile_rows
        columns = jnp.arange(self.column_tiles)[None] if self.listed is None else self.listed
        first_columns = columns * self.tile_columns
        last_rows = jnp.minimum(first_rows + self.tile_rows, self.rows) - 1
        last_columns = jnp.minimum(first_columns + self.tile_columns, self.columns) - 1
        return [(row, column) for row in (first_rows, last_rows) for column in (first_columns, last_columns)]


class Mask:
    """What all masks share. Combine with `&`, `|`, `~`; look at one with `dense`."""

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, _mask(other))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, _mask(other))

    def __invert__(self) -> "Mask":
        return Not(self)

    def dense(self, *shape: int) -> Bool[Array, "..."]:
        """As an array of shape (query_length, key_length) or (*batch, heads, query_length, key_length)."""
        *problems, rows, columns = shape
        *batch, heads = problems or [1]
        grid = Grid(tuple(batch), heads, 1, rows, columns)
        return jnp.broadcast_to(dense(self.on(grid), rows, columns), (*grid.problems, rows, columns)).reshape(shape)

    def on(self, grid: Grid) -> "Mask":
        """The same mask with alignments resolved and every array on the grid's five axes.

        Raises:
          ValueError: an array does not fit the grid; it is named.
        """
        raise NotImplementedError

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        """Whether the queries at `rows` (rows, 1) may read the keys at `columns` (1, columns), for one problem.

        The mask is one `on` a grid whose arrays have lost the problem axes and been cut to these rows and columns.
        """
        raise NotImplementedError

    def coverage(self, tiling: Tiling) -> Coverage:
        """Of every tile, for a mask on a grid; by evaluating every pair unless the mask knows a shorter way.

        Of tiles that are listed it says that they may allow something, and not everything.
        """
        if tiling.listed is not None:
            shape = tiling.listed.shape
            return jnp.ones(shape, bool), jnp.zeros(shape, bool)
        leaves, structure = jax.tree.flatten(self)
        columns = jnp.arange(tiling.columns)[None]
        past = tiling.column_tiles * tiling.tile_columns - tiling.columns

        def strip(first: Positions) -> Coverage:
            # All columns at once. Rows past the end repeat the last one, columns past it count for nothing.
            rows = jnp.minimum(first + jnp.arange(tiling.tile_rows), tiling.rows - 1)

            def one(*arrays: Array) -> Coverage:
                cut = [array if array.shape[0] == 1 else array[rows] for array in arrays]
                values = structure.unflatten(cut).allowed(rows[:, None], columns)
                values = jnp.broadcast_to(values, (tiling.tile_rows, tiling.columns))
                shape = (tiling.tile_rows, tiling.column_tiles, tiling.tile_columns)
                some = jnp.pad(values, ((0, 0), (0, past)), constant_values=False).reshape(shape).any(axis=(0, 2))
                every = jnp.pad(values, ((0, 0), (0, past)), constant_values=True).reshape(shape).all(axis=(0, 2))
                return some, every

            return over_problems(one, leaves, tiling.problem_axes)

        some, every = jax.lax.map(strip, jnp.arange(tiling.row_tiles) * tiling.tile_rows)
        return jnp.moveaxis(some, 0, -2), jnp.moveaxis(every, 0, -2)


def tile_ranges(
    values: Any, axis: int, tiles: int, size: int
) -> tuple[Int[Array, "*problems row_tiles column_tiles"], Int[Array, "*problems row_tiles column_tiles"]]:
    """The lowest and the highest of the values of each tile along that axis, rows (-2) or columns (-1)."""
    values = jnp.moveaxis(values, axis, -1)
    behind = [(0, 0)] * (values.ndim - 1) + [(0, tiles * size - values.shape[-1])]
    cut = jnp.pad(values, behind, mode="edge").reshape(*values.shape[:-1], tiles, size)
    return jnp.moveaxis(cut.min(axis=-1), -1, axis), jnp.moveaxis(cut.max(axis=-1), -1, axis)


def dense(mask: Mask, rows: int, columns: int) -> Bool[Array, "#flat #kv_heads #groups rows columns"]:
    """A mask that is on a grid, as an array; problem axes that it does not vary along stay 1."""
    leaves, structure = jax.tree.flatten(mask)

    def one(*arrays: Array) -> Bool[Array, "rows columns"]:
        values = structure.unflatten(arrays).allowed(jnp.arange(rows)[:, None], jnp.arange(columns)[None])
        return jnp.broadcast_to(values, (rows, columns))

    return over_problems(one, leaves, 3)


def _mask(other: Any) -> Mask:
    if not isinstance(other, Mask):
        raise TypeError(f"a mask combines with another mask; got {type(other)} (wrap an array in masks.Dense)")
    return other


def _is_child(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_is_child(item) for item in value)
    return isinstance(value, (Mask, jax.Array, np.ndarray))


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree(cls: type[_Class]) -> type[_Class]:
    """A frozen dataclass whose arrays and masks are children and whose other fields are static.

    Which fields are children is settled when an instance is made by hand: the leaves of a pytree may be anything.
    """

    made: Any = dataclass(frozen=True, eq=False)(cls)

    def flatten(mask: Any) -> tuple[list[Any], tuple[Any, ...]]:
        fields = {field.name: getattr(mask, field.name) for field in dataclasses.fields(made)}
        children = getattr(mask, "_children", None)
        if children is None:
            children = tuple(name for name, value in fields.items() if _is_child(value))
        static = tuple((name, value) for name, value in fields.items() if name not in children)
        return [fields[name] for name in children], (children, static)

    def unflatten(structure: tuple[Any, ...], leaves: Any) -> Any:
        children, static = structure
        mask = object.__new__(cls)
        for name, value in (*zip(children, leaves, strict=True), *static, ("_children", children)):
            object.__setattr__(mask, name, value)
        return mask

    jax.tree_util.register_pytree_node(made, flatten, unflatten)
    return made


@pytree
class And(Mask):
    """Both.

    >>> (Causal("start") & Lengths(keys=2)).dense(4, 4).astype(int)
    Array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 0, 0]], dtype=int32)
    """

    left: Mask
    right: Mask

    def on(self, grid: Grid) -> "And":
        return And(self.left.on(grid), self.right.on(grid))

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        return self.left.allowed(rows, columns) & self.right.allowed(rows, columns)

    def coverage(self, tiling: Tiling) -> Coverage:
        (left_some, left_every), (right_some, right_every) = (m.coverage(tiling) for m in (self.left, self.right))
        return left_some & right_some, left_every & right_every


@pytree
class Or(Mask):
    """Either.

    >>> (Window(0, 0, "start") | Prefix(1)).dense(4, 4).astype(int)
    Array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 0, 1, 0],
           [1, 0, 0, 1]], dtype=int32)
    """

    left: Mask
    right: Mask

    def on(self, grid: Grid) -> "Or":
        return Or(self.left.on(grid), self.right.on(grid))

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        return self.left.allowed(rows, columns) | self.right.allowed(rows, columns)

    def coverage(self, tiling: Tiling) -> Coverage:
        (left_some, left_every), (right_some, right_every) = (m.coverage(tiling) for m in (self.left, self.right))
        return left_some | right_some, left_every | right_every


@pytree
class Not(Mask):
    """Where the other does not allow.

    >>> (~Causal("start")).dense(4, 4).astype(int)
    Array([[0, 1, 1, 1],
           [0, 0, 1, 1],
           [0, 0, 0, 1],
           [0, 0, 0, 0]], dtype=int32)
    """

    mask: Mask

    def on(self, grid: Grid) -> "Not":
        return Not(self.mask.on(grid))

    def allowed(self, rows: Positions, columns: Positions) -> Bool[Array, "..."]:
        return ~self.mask.allowed(rows, columns)

    def coverage(self, tiling: Tiling) -> Coverage:
        some, every = self.mask.coverage(tiling)
        return ~every, ~some
