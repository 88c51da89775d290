"""One chunk of linear attention, for one problem: the mathematics that all tiled implementations share.

`rows`, `columns` and `whole` are the sum of log decays from the start of the chunk up to and with each of its tokens,
along either axis, and up to its end: every exponent is a difference over what lies between two tokens, so nothing
overflows, however long the sequence. The state that comes in is Σ key valueᵀ over the chunks before, decayed up to the
last token before this one; in reverse that over the chunks behind, decayed back to this chunk's last token.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def passed_in_chunks(
    log_decay: Float[Array, "*problems #length"], length: int, chunk: int
) -> Float[Array, "*problems length"]:
    """The sum of log decays from each chunk's start; log_decay may have one number for all tokens."""
    tokens = jnp.broadcast_to(log_decay, (*log_decay.shape[:-1], length))
    return tokens.reshape(*tokens.shape[:-1], -1, chunk).cumsum(axis=-1).reshape(tokens.shape)


@dataclass(frozen=True)
class Chunk:
    """In which direction, and in which dtype and precision operands are multiplied; sums are float32 or wider."""

    reverse: bool
    dtype: Any
    precision: lax.Precision = lax.Precision.HIGHEST

    def decayed_product(
        self,
        query: Float[Array, "chunk width"],
        key: Float[Array, "chunk width"],
        value: Float[Array, "chunk value_width"],
        rows: Float[Array, "chunk 1"],
        columns: Float[Array, "1 chunk"],
        whole: Float[Array, "..."],
        state: Float[Array, "width value_width"],
    ) -> tuple[Float[Array, "chunk value_width"], Float[Array, "width value_width"]]:
        """What the chunk's queries read, and the next state."""
        inside = self._scores(query, key, rows, columns, strict=False)
        output = self._multiply(inside, value, 1, 0) + self._read(query, rows, whole, state)
        return output, self._next(key, value, rows, whole, state)

    def unit_solve(
        self,
        query: Float[Array, "chunk width"],
        key: Float[Array, "chunk width"],
        target: Float[Array, "chunk value_width"],
        rows: Float[Array, "chunk 1"],
        columns: Float[Array, "1 chunk"],
        whole: Float[Array, "..."],
        state: Float[Array, "width value_width"],
    ) -> tuple[Float[Array, "chunk value_width"], Float[Array, "width value_width"]]:
        """The chunk's part of the solution, and the next state."""
        # The state is read before there are scores: on GPUs float32 with head dim 128 spills otherwise.
        left = target - self._read(query, rows, whole, state)
        inside = self._scores(query, key, rows, columns, strict=True)
        solution = _product(_inverse(inside), left, 1, 0)
        return solution, self._next(key, solution, rows, whole, state)

    def _scores(self, query: Array, key: Array, rows: Array, columns: Array, *, strict: bool) -> Array:
        """Scores times the decay between query and key, of keys up to the query; in reverse of those from it on."""
        size = query.shape[0]
        later = lax.broadcasted_iota(jnp.int32, (size, size), 0) - lax.broadcasted_iota(jnp.int32, (size, size), 1)
        between = rows - columns
        if self.reverse:
            later, between = -later, -between
        read = later >= int(strict)
        decay = jnp.where(read, jnp.exp(jnp.where(read, between, 0)), 0)
        return self._multiply(query, key, 1, 1) * decay

    def _read(self, query: Array, rows: Array, whole: Array, state: Array) -> Array:
        """What queries read of the state that comes in."""
        return self._multiply(query * jnp.exp(whole - rows if self.reverse else rows), state, 1, 0)

    def _next(self, key: Array, value: Array, rows: Array, whole: Array, state: Array) -> Array:
        decayed = key * jnp.exp(rows if self.reverse else whole - rows)
        return state * jnp.exp(whole) + self._multiply(decayed, value, 0, 0)

    def _multiply(self, a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
        return _product(a.astype(self.dtype), b.astype(self.dtype), contract_a, contract_b, self.precision)


def _inverse(strict: Float[Array, "chunk chunk"]) -> Float[Array, "chunk chunk"]:
    """(1 + strict)⁻¹, strict being strictly lower or strictly upper triangular.

    Blocks of the diagonal are inverted, of size 1, 2, 4 and so on: those of the next size follow from
    [[A, 0], [C, B]]⁻¹ = [[A⁻¹, 0], [-B⁻¹ C A⁻¹, B⁻¹]].
    """
    size = strict.shape[0]
    row = lax.broadcasted_iota(jnp.int32, (size, size), 0)
    column = lax.broadcasted_iota(jnp.int32, (size, size), 1)
    made = jnp.where(row == column, 1, jnp.zeros_like(strict))
    for level in range((size - 1).bit_length()):
        corner = (row >> (level + 1) == column >> (level + 1)) & (row >> level != column >> level)
        made = made - _product(_product(made, jnp.where(corner, strict, 0), 1, 0), made, 1, 0)
    return made


def _product(
    a: Float[Array, "i j"],
    b: Float[Array, "k l"],
    contract_a: int,
    contract_b: int,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> Float[Array, "m n"]:
    """The product of two matrices over one axis of each."""
    axes = (((contract_a,), (contract_b,)), ((), ()))
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=wide)
