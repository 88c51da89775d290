"""Choosing: the k best with gradients, balanced use, pooling and gathering of tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def top_k_mask(scores: Float[Array, "... choices"], k: int) -> Bool[Array, "... choices"]:
    """True for exactly the k highest of the last axis; of equal ones the first. No gradient.

    Raises:
      ValueError: there are fewer than k choices.
    """
    choices = scores.shape[-1]
    if not 0 <= k <= choices:
        raise ValueError(f"k must be from 0 to the {choices} choices; got {k}")
    if k == 0:
        return jnp.zeros(scores.shape, bool)
    _, best = jax.lax.top_k(jax.lax.stop_gradient(scores), k)
    return jax.nn.one_hot(best, choices, dtype=bool).any(axis=-2)


def straight_through(hard: Float[Array, "..."], soft: Float[Array, "..."]) -> Float[Array, "..."]:
    """`hard`, with the derivative of `soft` (Bengio et al. 2013, arXiv 1308.3432)."""
    return jax.lax.stop_gradient(hard - soft) + soft


def top_k_gates(
    logits: Float[Array, "... choices"], k: int, *, renormalise: bool = False, quantise: bool = False
) -> Float[Array, "... choices"]:
    """The softmax of the logits where they are among the k highest, 0 elsewhere.

    The choice itself has no gradient; the gates of what was chosen have that of the softmax.

    Args:
      renormalise: gates sum to 1 over the chosen.
      quantise: gates are 1, with the gradient that they would have otherwise.

    Raises:
      ValueError: there are fewer than k choices.
    """
    chosen = top_k_mask(logits, k)
    gates = jnp.where(chosen, jax.nn.softmax(logits, axis=-1), 0)
    if renormalise and k > 0:
        gates = gates / gates.sum(axis=-1, keepdims=True)
    return straight_through(chosen.astype(gates.dtype), gates) if quantise else gates


def balance_loss(
    probabilities: Float[Array, "tokens choices"], chosen: Bool[Array, "tokens choices"]
) -> Float[Array, ""]:
    """choices · Σ_i P_i f_i: P_i the mean probability of choice i, f_i the share of tokens that chose it.

    The number of choices a token makes when use is even, more when few are used by many. The gradient flows through P
    alone (Shazeer et al. 2017, arXiv 1701.06538; Fedus et al. 2021, arXiv 2101.03961, equation 4).
    """
    used = jax.lax.stop_gradient(chosen.astype(probabilities.dtype).mean(axis=0))
    return probabilities.shape[-1] * (probabilities.mean(axis=0) * used).sum()


def pool_blocks(tokens: Float[Array, "... length features"], block: int) -> Float[Array, "... blocks features"]:
    """The mean of each block of tokens; that of a last block which is not full, of the tokens it has.

    Raises:
      ValueError: block is below 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1; got {block}")
    length = tokens.shape[-2]
    blocks = -(-length // block)
    behind = [(0, 0)] * (tokens.ndim - 2) + [(0, blocks * block - length), (0, 0)]
    sums = jnp.pad(tokens, behind).reshape(*tokens.shape[:-2], blocks, block, tokens.shape[-1]).sum(axis=-2)
    counts = jnp.minimum(block, length - block * jnp.arange(blocks))
    return sums / counts[:, None].astype(tokens.dtype)


def gather_tokens(
    tokens: Float[Array, "*batch length features"], indices: Int[Array, "..."]
) -> Float[Array, "... features"]:
    """The tokens at those places (*batch, *lists), for every batch entry: (*batch, *lists, features)."""
    batch = tokens.ndim - 2
    flat = indices.reshape(*indices.shape[:batch], -1)
    found = jnp.take_along_axis(tokens, flat[..., None], axis=-2)
    return found.reshape(*indices.shape, tokens.shape[-1])


def scatter_mean(
    values: Float[Array, "*batch lists entries features"],
    indices: Int[Array, "*batch lists entries"],
    length: int,
    *,
    more: float = 0.0,
) -> Float[Array, "*batch length features"]:
    """For every token the mean of the values that lists have for it; 0 for a token that is in no list.

    Args:
      indices: which token each value is of.
      more: added to the number that is divided by.
    """

    def one(values: Array, indices: Array) -> Array:
        places = indices.reshape(-1)
        sums = jnp.zeros((length, values.shape[-1]), values.dtype).at[places].add(values.reshape(-1, values.shape[-1]))
        counts = jnp.zeros(length, values.dtype).at[places].add(1)
        return sums / jnp.where(counts == 0, 1, counts + more)[:, None]

    for _ in range(values.ndim - 3):
        one = jax.vmap(one)
    return one(values, indices)
