"""Routing attention that is strictly causal: a token reads the latest members of its own cluster.

The groups of the published form (`jattn.mechanisms.routing`) depend on the whole sequence. Here a token belongs to
the centroid that is nearest to it, whatever follows, and groups have any size: a window bounds what is read.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import kernels
from jattn.layers.selection import gather_tokens
from kernels import masks


def causal_routing_attention(
    query: Float[Array, "batch length heads width"],
    key: Float[Array, "batch length heads width"],
    value: Float[Array, "batch length heads value_width"],
    clusters: Int[Array, "batch heads length"],
    window: int,
    *,
    exclude_self: bool = False,
    implementation: str | None = None,
) -> Float[Array, "batch length heads value_width"]:
    """Every token reads the last `window` tokens of its own cluster up to itself.

    Tokens are brought in the order of clusters and then positions, in which what each may read is a window that ends
    at the borders of clusters.

    Args:
      clusters: the cluster of each token.
      exclude_self: the last `window` before the token; the first of a cluster reads itself.

    Raises:
      ValueError: window is below 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1; got {window}")
    order = jnp.argsort(clusters, axis=-1, stable=True)
    cluster = jnp.take_along_axis(clusters, order, axis=-1)
    mask = masks.Segments(cluster) & masks.Window(window - 1, 0, -1 if exclude_self else "start")
    if exclude_self:
        place = jnp.arange(cluster.shape[-1])
        first = (place == 0) | (cluster != jnp.roll(cluster, 1, axis=-1))
        mask |= masks.Window(0, 0, "start") & masks.Segments(jnp.where(first, place, -1), place)
    arranged = (gather_tokens(jnp.moveaxis(each, 2, 1), order)[..., None, :] for each in (query, key, value))
    read = kernels.attention(*arranged, mask=mask, implementation=implementation)
    back = jnp.argsort(order, axis=-1)
    return jnp.moveaxis(gather_tokens(read[..., 0, :], back), 1, 2)


class RoutingState(NamedTuple):
    """What decoding carries: of every cluster the last `window` keys and values, and how many it has been given.

    The member of number n, counted from 0, is at place n % window.
    """

    keys: Float[Array, "batch heads clusters window width"]
    values: Float[Array, "batch heads clusters window value_width"]
    count: Int[Array, "batch heads clusters"]

    @staticmethod
    def after(
        keys: Float[Array, "batch length heads width"],
        values: Float[Array, "batch length heads value_width"],
        members: Int[Array, "batch heads length"],
        clusters: int,
        window: int,
    ) -> "RoutingState":
        """Of a prompt, which may be empty.

        Args:
          members: the cluster of each token, of that many clusters.
        """
        given = jax.nn.one_hot(members, clusters, dtype=jnp.int32)
        count = given.sum(axis=2)
        number = (given.cumsum(axis=2) * given).sum(axis=-1) - 1
        latest = number >= jnp.take_along_axis(count, members, axis=-1) - window
        place = jnp.where(latest, number % window, window)

        def put(tokens: Float[Array, "batch length heads width"]) -> Float[Array, "batch heads clusters window width"]:
            batch, _, heads, width = tokens.shape
            empty = jnp.zeros((batch, heads, clusters, window, width), tokens.dtype)
            return empty.at[*_cells(members), members, place].set(jnp.moveaxis(tokens, 2, 1), mode="drop")

        return RoutingState(put(keys), put(values), count)


def _cells(members: Int[Array, "batch heads *rest"]) -> tuple[Int[Array, "batch 1 *ones"], Int[Array, " heads *ones"]]:
    """Indices of batch entries and heads, to stand beside the clusters of their tokens."""
    rest = (1,) * (members.ndim - 2)
    batch, heads = (jnp.arange(size) for size in members.shape[:2])
    return batch.reshape(-1, 1, *rest), heads.reshape(-1, *rest)


def causal_routing_step(
    state: RoutingState,
    query: Float[Array, "batch heads width"],
    key: Float[Array, "batch heads width"],
    value: Float[Array, "batch heads value_width"],
    clusters: Int[Array, "batch heads"],
    *,
    exclude_self: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch heads value_width"], RoutingState]:
    """What one more token reads, and the state after it: one row of `causal_routing_attention`.

    Args:
      clusters: the token's cluster in every head.
    """
    window = state.keys.shape[3]
    own = (*_cells(clusters), clusters)
    before = state.count[own]
    keys, values = (old.at[*own, before % window].set(new) for old, new in ((state.keys, key), (state.values, value)))
    filled = jnp.minimum(before + 1, window)
    read = [keys[own], values[own]]
    if exclude_self:
        others = (before > 0)[..., None, None]
        read = [jnp.where(others, old[own], new) for old, new in zip(state, read, strict=False)]
        filled = jnp.clip(before, 1, window)
    output = kernels.attention(
        query[:, :, None, None],
        *(each[..., None, :] for each in read),
        mask=masks.Lengths(keys=filled),
        implementation=implementation,
    )
    return output[:, :, 0, 0], RoutingState(keys, values, state.count.at[own].add(1))
