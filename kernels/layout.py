"""An array on the grid as a Pallas kernel sees it: what it varies along, and whether a kernel can have it."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from kernels.masks.algebra import Tiling
from kernels.shapes import per_entry, tile_features


@dataclass(frozen=True)
class GridArray:
    """Shape, dtype and tiles of an array on the grid; how it lies in memory is the platform's."""

    shape: tuple[int, ...]
    dtype: Any
    tiling: Tiling
    varies: tuple[bool, bool] | None = None
    """Along rows, along columns; None: wherever there is more than one."""

    @property
    def axes(self) -> int:
        """How many axes of problems there are."""
        return self.tiling.problem_axes

    @property
    def along(self) -> tuple[bool, bool]:
        """Whether it varies along rows, and along columns."""
        return self.varies or (self.shape[self.axes] > 1, self.shape[self.axes + 1] > 1)

    @property
    def features(self) -> tuple[int, ...]:
        return tile_features(self.shape, self.axes)

    @property
    def of_entries(self) -> bool:
        """Whether it has a number for each tile, of what callers have a number of for each entry of a block table."""
        return per_entry(self.shape, self.axes)

    @property
    def unsupported(self) -> str | None:
        """Why it cannot be given to a kernel."""
        if len(self.features) > 1 or (self.features and all(self.along)):
            return f"an array of shape {self.shape[self.axes :]} for each problem"
        return "float64" if self.dtype == jnp.float64 else None
