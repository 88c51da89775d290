"""One call of attention, its arrays on the grid."""

from dataclasses import dataclass

from jaxtyping import Array, Float

from kernels.masks.algebra import Mask
from kernels.pairwise.tiles import Scores
from kernels.schedule import Tiles
from kernels.shapes import Grid


@dataclass(frozen=True, eq=False)
class Problem:
    """Arrays and mask on the grid (see `kernels.shapes`), how scores are made of them, and how to compute.

    Attributes:
      bias: of scores, or a number for each entry of the mask's block table.
      scores: scale and softcap, and whether there is a bias.
      tiles: None leaves them to the implementation.
      implementation: "reference", "xla", "gpu", "tpu", or None for the platform's own.
    """

    query: Float[Array, "flat kv_heads groups rows 1 width"]
    key: Float[Array, "flat kv_heads 1 1 columns width"]
    value: Float[Array, "flat kv_heads 1 1 columns value_width"]
    bias: (
        Float[Array, "#flat #kv_heads #groups #rows #columns"]
        | Float[Array, "#flat #kv_heads #groups 1 1 row_blocks entries 1"]
        | None
    )
    mask: Mask | None
    grid: Grid
    scores: Scores
    tiles: Tiles | None = None
    implementation: str | None = None

    @property
    def biases(self) -> tuple[Array, ...]:
        """The bias, if there is one."""
        return () if self.bias is None else (self.bias,)
