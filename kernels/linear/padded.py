"""The arrays of linear attention as its Pallas kernels take them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kernels.linear.chunk import passed_in_chunks


@dataclass(frozen=True)
class Padded:
    """Query, key and value with zeros behind them, up to whole chunks, and the log decays passed in each chunk."""

    arrays: Sequence[Float[Array, "..."]]
    passed: Float[Array, "..."]
    problems: tuple[int, ...]
    result: tuple[int, ...]
    """The shape of what is made of them, without what was padded."""

    @staticmethod
    def of(
        arrays: Sequence[Array],
        log_decay: Array,
        axes: int,
        chunk: int,
        features: Callable[[int], int] = lambda size: size,
    ) -> "Padded":
        """`features` says how many of them the hardware takes."""
        problems = jnp.broadcast_shapes(*(array.shape[:axes] for array in (*arrays, log_decay)))
        length = arrays[0].shape[axes]
        behind = -length % chunk
        nothing = [(0, 0)] * axes
        padded = [
            jnp.pad(array, [*nothing, (0, behind), (0, features(array.shape[-1]) - array.shape[-1])])
            for array in arrays
        ]
        passed = log_decay.astype(jnp.float32)
        if passed.shape[-1] > 1:
            passed = jnp.pad(passed, [*nothing, (0, behind)])
        passed = passed_in_chunks(passed, length + behind, chunk)
        return Padded(padded, passed, problems, (*problems, length, arrays[2].shape[-1]))

    @property
    def length(self) -> int:
        return self.passed.shape[-1]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return 0 in self.result or 0 in self.arrays[0].shape

    def place(self, shape: Sequence[int], number: Any) -> list[Any]:
        """Where the problem of that number lies along the problem axes of an array of that shape."""
        places, number = [], jnp.int32(number)
        for size, full in reversed(list(zip(shape, self.problems, strict=False))):
            places.append(0 if size == 1 else lax.rem(number, jnp.int32(full)))
            number = lax.div(number, jnp.int32(full))
        return places[::-1]
