"""The mathematics of one chunk of linear attention, for one problem: shared by all tiled implementations.

`passed` is the sum of log decays from the start of the chunk up to and with each of its tokens, so that every exponent
here is a difference over what lies between two tokens: never an overflow, however long the sequence. The state that
comes in is Σ key valueᵀ over the chunks before, decayed up to the last token before this chunk; in reverse that over
the chunks behind, decayed back to this chunk's last token.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def passed_in_chunks(
    log_decay: Float[Array, "*problems #length"], length: int, chunk: int
) -> Float[Array, "*problems length"]:
    """The sum of log decays from each chunk's start; log_decay may have one number for all tokens."""
    tokens = jnp.broadcast_to(log_decay, (*log_decay.shape[:-1], length))
    return tokens.reshape(*tokens.shape[:-1], -1, chunk).cumsum(axis=-1).reshape(tokens.shape)


def weights(
    query: Float[Array, "chunk width"],
    key: Float[Array, "chunk width"],
    rows: Float[Array, "chunk 1"],
    columns: Float[Array, "1 chunk"],
    *,
    reverse: bool,
    strict: bool,
) -> Float[Array, "chunk chunk"]:
    """Scores times the decay between query and key, of keys up to the query; in reverse of those from it on.

    Args:
      rows, columns: `passed`, along either axis.
      strict: without the query's own.
    """
    size = query.shape[0]
    later = lax.broadcasted_iota(jnp.int32, (size, size), 0) - lax.broadcasted_iota(jnp.int32, (size, size), 1)
    between = rows - columns
    if reverse:
        later, between = -later, -between
    read = later >= int(strict)
    decay = jnp.where(read, jnp.exp(jnp.where(read, between, 0)), 0)
    return product(query, key, 1, 1) * decay


def from_state(
    query: Float[Array, "chunk width"],
    state: Float[Array, "width value_width"],
    rows: Float[Array, "chunk 1"],
    whole: Float[Array, "1 1"],
    *,
    reverse: bool,
) -> Float[Array, "chunk value_width"]:
    """What queries read of the state that comes in; `whole` is what has passed at the chunk's end."""
    return product(query * jnp.exp(whole - rows if reverse else rows), state, 1, 0)


def next_state(
    key: Float[Array, "chunk width"],
    value: Float[Array, "chunk value_width"],
    state: Float[Array, "width value_width"],
    rows: Float[Array, "chunk 1"],
    whole: Float[Array, "1 1"],
    *,
    reverse: bool,
) -> Float[Array, "width value_width"]:
    """The state that goes out."""
    decayed = key * jnp.exp(rows if reverse else whole - rows)
    return state * jnp.exp(whole) + product(decayed, value, 0, 0)


def inverse(strict: Float[Array, "chunk chunk"], *, reverse: bool) -> Float[Array, "chunk chunk"]:
    """(1 + strict)⁻¹, strict being strictly lower (in reverse strictly upper) triangular.

    Blocks of the diagonal are inverted, of size 1, 2, 4 and so on: those of the next size follow from
    [[A, 0], [C, B]]⁻¹ = [[A⁻¹, 0], [-B⁻¹ C A⁻¹, B⁻¹]].
    """
    size = strict.shape[0]
    row = lax.broadcasted_iota(jnp.int32, (size, size), 0)
    column = lax.broadcasted_iota(jnp.int32, (size, size), 1)
    made = jnp.where(row == column, 1, jnp.zeros_like(strict))
    block = 1
    while block < size:
        near = row // (2 * block) == column // (2 * block)
        between = near & (row // block != column // block)
        corner = jnp.where(between, strict, 0)
        made = made - product(product(made, corner, 1, 0), made, 1, 0)
        block *= 2
    return made


def product(a: Float[Array, "i j"], b: Float[Array, "k l"], contract_a: int, contract_b: int) -> Float[Array, "m n"]:
    """The product of two matrices over one axis of each, in full precision."""
    return lax.dot_general(
        a,
        b,
        (((contract_a,), (contract_b,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=a.dtype,
    )
