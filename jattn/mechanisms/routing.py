"""Routing attention: online k-means groups tokens by content, and tokens read their own groups (arXiv 2003.05997).

Roy, Saffar, Vaswani and Grangier, TACL 2021. There are two forms, which differ in who is in a group.

`routing_attention` is the published one: each centroid lists the tokens with the largest affinity to it, so that all
groups have one size. A token may be in several groups or in none. Lists are chosen among the whole sequence, so that
a later token can push an earlier one out: given the lists no value leaks from the future, but the lists themselves
tell of it.

That of `jattn.mechanisms.causal_routing` gives every token to its nearest centroid, and the token reads the latest
members of its group. Nothing leaks, and it decodes token by token in constant memory.

With √length centroids and lists of √length tokens the work of both goes with length to the power 1.5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

import kernels
from jattn.layers.auxiliary import AuxiliaryLoss
from jattn.layers.centroids import Centroids
from jattn.layers.norms import layer_norm
from jattn.layers.positions import rotate_by_position
from jattn.layers.selection import gather_tokens, scatter_mean
from jattn.mechanisms.causal_routing import RoutingState, causal_routing_attention, causal_routing_step
from jattn.mechanisms.local import LocalState, local_attention, local_attention_step
from kernels import masks


def routing_lists(
    vectors: Float[Array, "batch length heads width"], centroids: Float[Array, "heads clusters width"], window: int
) -> Int[Array, "batch heads clusters window"]:
    """For each centroid the `window` tokens with the largest product with it, in ascending order; no gradient.

    Of equal tokens the earlier are listed.

    Raises:
      ValueError: window is not from 1 to the length.
    """
    length = vectors.shape[1]
    if not 1 <= window <= length:
        raise ValueError(f"window must be from 1 to the length of {length}; got {window}")
    affinity = jnp.einsum("bnhd,hcd->bhcn", *jax.lax.stop_gradient((vectors, centroids)))
    _, best = jax.lax.top_k(affinity, window)
    return jnp.sort(best, axis=-1)


def routing_attention(
    query: Float[Array, "batch length heads width"],
    key: Float[Array, "batch length heads width"],
    value: Float[Array, "batch length heads value_width"],
    lists: Int[Array, "batch heads clusters window"],
    key_lists: Int[Array, "batch heads clusters key_window"] | None = None,
    *,
    causal: bool = True,
    exclude_self: bool = False,
    more: float = 0.0,
    implementation: str | None = None,
) -> Float[Array, "batch length heads value_width"]:
    """For every token the mean, over the lists that have it, of what it reads of the keys listed there.

    A token in no list gives 0, and where it may read none of a list's keys it reads 0 there, which counts.

    Args:
      lists: tokens of each cluster, ascending and each at most once, as `routing_lists` makes them.
      key_lists: keys of each cluster where they are not the same tokens, in any order.
      causal: a token reads no later one. Positions are those in the sequence, not those in a list.
      exclude_self: a token does not read itself, unless there is no other; a shared query and key would be its own
        best match. Not for key_lists.
      more: added to the number of lists that a mean divides by; the released code has 0.01.

    Raises:
      ValueError: exclude_self with key_lists.
    """
    if exclude_self and key_lists is not None:
        raise ValueError("exclude_self must be False where keys have lists of their own: no token is its own key")
    if key_lists is not None:
        mask = masks.At(masks.Causal("start"), queries=lists, keys=key_lists) if causal else None
    elif exclude_self:
        # The first of a list, where order counts, and the only one of a list read themselves.
        others = ~masks.Window(0, 0, "start") if lists.shape[-1] > 1 else None
        mask = masks.Causal(-1) | masks.Prefix(1) if causal else others
    else:
        mask = masks.Causal("start") if causal else None
    keys_at = lists if key_lists is None else key_lists
    read = kernels.attention(
        *(
            gather_tokens(jnp.moveaxis(each, 2, 1), at)[..., None, :]
            for each, at in ((query, lists), (key, keys_at), (value, keys_at))
        ),
        mask=mask,
        implementation=implementation,
    )
    return jnp.moveaxis(scatter_mean(read[..., 0, :], lists, query.shape[1], more=more), 1, 2)


class RoutingStatistic(nnx.Variable):
    """Moving averages of k-means: no parameter."""


class RoutingDecoding(NamedTuple):
    """What decoding a layer carries: as large after a million tokens as after one."""

    local: LocalState
    routing: RoutingState
    position: Int[Array, ""]


class RoutingAttention(nnx.Module):
    """Causal self-attention whose first heads are local, and whose others read clusters. No biases.

    Queries and keys of routing heads are layer-normed, without scale and shift, and compared with centroids; then
    they are turned by their positions, and attend. Centroids are no parameters: they are moving averages of the
    vectors nearest to them, and follow the calls while `update_centroids` is true.

    Attributes:
      commitment: mean squared distance of queries and keys to their centroids in the last call, to be added to the
        task's loss (times 10⁻⁴ in the paper).
      update_centroids: whether a call moves the centroids, after having used them: true in training.
        `model.set_attributes(update_centroids=True)` sets it in all layers of a model.
      count, total: of `Centroids`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        local_heads: int,
        clusters: int,
        window: int,
        block: int = 256,
        look_back: int = 256,
        decay: float = 0.999,
        share_query_key: bool = True,
        exclude_self: bool = False,
        causal_routing: bool = False,
        more: float = 0.0,
        base: float = 10000.0,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Heads `local_heads` to `heads` are routing heads.

        Args:
          clusters: of each routing head.
          window: tokens of a cluster's list, or latest members that are read if causal_routing.
          block, look_back: of the local heads; see `local_attention`.
          decay: of the moving averages, for each call.
          share_query_key: routing heads have one vector for both, as the paper's causal models have.
          exclude_self, more: see `routing_attention`.
          causal_routing: see `causal_routing_attention`; needs shared queries and keys.
        """
        if heads < 1 or width % (2 * heads):
            raise ValueError(f"heads must cut the width of {width} into even parts; got {heads}")
        if not 0 <= local_heads < heads:
            raise ValueError(f"local_heads must be from 0 to {heads - 1}; got {local_heads}")
        for name, size in (("clusters", clusters), ("window", window)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        if not share_query_key and (exclude_self or causal_routing):
            raise ValueError("share_query_key must be True for exclude_self and causal_routing; got False")
        self.width, self.heads, self.local_heads, self.base = width, heads, local_heads, base
        self.clusters, self.window, self.block, self.look_back = clusters, window, block, look_back
        self.decay, self.share_query_key, self.exclude_self = decay, share_query_key, exclude_self
        self.causal_routing, self.more, self.implementation = causal_routing, more, implementation
        self.update_centroids = False
        head_dim = width // heads
        key_heads = local_heads if share_query_key else heads
        self.query = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(width, key_heads * head_dim, use_bias=False, rngs=rngs) if key_heads else None
        self.value = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.output = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        drawn = jax.random.normal(rngs.params(), (heads - local_heads, clusters, head_dim))
        start = Centroids.of(layer_norm(drawn))
        self.count, self.total = RoutingStatistic(start.count), RoutingStatistic(start.total)
        self.commitment = AuxiliaryLoss(jnp.zeros(()))

    @property
    def centroids(self) -> Centroids:
        """Of every routing head."""
        return Centroids(self.count[...], self.total[...])

    def project(
        self, features: Float[Array, "batch length width"]
    ) -> tuple[
        Float[Array, "batch length heads head_dim"],
        Float[Array, "batch length heads head_dim"],
        Float[Array, "batch length heads head_dim"],
    ]:
        """Queries and keys, those of routing heads on the sphere and none turned by position, and values."""
        local, head_dim = self.local_heads, self.width // self.heads

        def heads(layer: nnx.Linear) -> Float[Array, "batch length some_heads head_dim"]:
            return layer(features).reshape(*features.shape[:2], layer.out_features // head_dim, head_dim)

        query, value = heads(self.query), heads(self.value)
        key = query[:, :, :0] if self.key is None else heads(self.key)
        query, key = (
            jnp.concatenate([each[:, :, :local], layer_norm(each[:, :, local:])], axis=2) for each in (query, key)
        )
        if self.share_query_key:
            key = jnp.concatenate([key, query[:, :, local:]], axis=2)
        return query, key, value

    def lists(
        self, vectors: Float[Array, "batch length routing_heads head_dim"]
    ) -> Int[Array, "batch routing_heads clusters window"]:
        """The tokens of each cluster, for queries or keys on the sphere; all of a sequence shorter than the window."""
        return routing_lists(vectors, self.centroids.places, min(self.window, vectors.shape[1]))

    def members(
        self, vectors: Float[Array, "batch length routing_heads head_dim"]
    ) -> Int[Array, "batch routing_heads length"]:
        """The cluster of each token, for queries on the sphere."""
        return self.centroids.nearest(jax.lax.stop_gradient(jnp.moveaxis(vectors, 2, 1)))

    def attend(
        self,
        query: Float[Array, "batch length heads head_dim"],
        key: Float[Array, "batch length heads head_dim"],
        value: Float[Array, "batch length heads value_dim"],
        positions: Int[Array, "#batch length"] | Int[Array, " length"],
    ) -> Float[Array, "batch length heads value_dim"]:
        """What each head reads, before the output projection, given what `project` made."""
        local, implementation = self.local_heads, self.implementation
        vectors, key_vectors = query[:, :, local:], key[:, :, local:]
        query, key = (rotate_by_position(each, positions, self.base) for each in (query, key))
        routing = query[:, :, local:], key[:, :, local:], value[:, :, local:]
        if self.causal_routing:
            members = self.members(vectors)
            read = causal_routing_attention(
                *routing, members, self.window, exclude_self=self.exclude_self, implementation=implementation
            )
        else:
            lists, key_lists = self.lists(vectors), None if self.share_query_key else self.lists(key_vectors)
            read = routing_attention(
                *routing,
                lists,
                key_lists,
                exclude_self=self.exclude_self,
                more=self.more,
                implementation=implementation,
            )
        if not local:
            return read
        near = query[:, :, :local], key[:, :, :local], value[:, :, :local]
        read_near = local_attention(*near, self.block, self.look_back, implementation=implementation)
        return jnp.concatenate([read_near, read], axis=2)

    def __call__(
        self,
        features: Float[Array, "batch length width"],
        *,
        positions: Int[Array, "#batch length"] | Int[Array, " length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """The output of every token.

        Args:
          positions: by which queries and keys are turned, from 0 by default; only differences count. Who is before
            whom is a matter of order, not of positions.
        """
        positions = jnp.arange(features.shape[1]) if positions is None else positions
        query, key, value = self.project(features)
        read = self.attend(query, key, value, positions)
        self._follow([query] if self.share_query_key else [query, key])
        return self.output(read.reshape(features.shape))

    def _follow(self, projected: list[Float[Array, "batch length heads head_dim"]]) -> None:
        """Sets the commitment loss, and moves the centroids if they are to be moved."""
        vectors = jnp.concatenate([each[:, :, self.local_heads :] for each in projected], axis=1)
        by_head = jnp.moveaxis(vectors, 2, 0).reshape(vectors.shape[2], -1, vectors.shape[3])
        by_head = by_head.astype(self.total[...].dtype)
        self.commitment[...] = self.centroids.commitment(by_head)
        if self.update_centroids:
            self.count[...], self.total[...] = self.centroids.update(by_head, self.decay)

    def start_decoding(
        self, features: Float[Array, "batch length width"]
    ) -> tuple[Float[Array, "batch length width"], RoutingDecoding]:
        """The output for a prompt at positions from 0, and what decoding goes on with. Centroids stay.

        Raises:
          ValueError: not causal_routing. Lists of a sequence that grows change for tokens that are past.
        """
        if not self.causal_routing:
            raise ValueError("causal_routing must be True for decoding: lists are chosen among the whole sequence")
        query, key, value = self.project(features)
        positions, local = jnp.arange(features.shape[1]), self.local_heads
        read = self.attend(query, key, value, positions)
        turned = rotate_by_position(key, positions, self.base)
        near = LocalState.after(turned[:, :, :local], value[:, :, :local], self.block, self.look_back)
        members = self.members(query[:, :, local:])
        alike = RoutingState.after(turned[:, :, local:], value[:, :, local:], members, self.clusters, self.window)
        return self.output(read.reshape(features.shape)), RoutingDecoding(near, alike, jnp.int32(features.shape[1]))

    def decode(
        self, features: Float[Array, "batch width"], state: RoutingDecoding
    ) -> tuple[Float[Array, "batch width"], RoutingDecoding]:
        """The output of one more token, as if it had been the last of one call, and the state after it."""
        local, near, implementation = self.local_heads, state.local, self.implementation
        query, key, value = self.project(features[:, None])
        members = self.members(query[:, :, local:])[..., 0]
        query, key = (rotate_by_position(each, state.position[None], self.base) for each in (query, key))
        query, key, value = query[:, 0], key[:, 0], value[:, 0]
        routing = query[:, local:], key[:, local:], value[:, local:]
        read, alike = causal_routing_step(
            state.routing, *routing, members, exclude_self=self.exclude_self, implementation=implementation
        )
        if local:
            one = query[:, :local], key[:, :local], value[:, :local]
            read_near, near = local_attention_step(
                near, state.position, *one, self.look_back, implementation=implementation
            )
            read = jnp.concatenate([read_near, read], axis=1)
        return self.output(read.reshape(features.shape)), RoutingDecoding(near, alike, state.position + 1)
