"""Bi-level routing attention: which regions of an image a region reads, then exact attention in those.

Zhu, Wang, Ke, Zhang, Lau: BiFormer, CVPR 2023, arXiv 2303.08810, section 3. An image is cut into regions x regions
rectangles. Region descriptors (means of queries and of keys) decide once for all heads which `top_k` regions each
region reads.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

import kernels
from jattn.layers.selection import gather_tokens

Map = Float[Array, "batch height width channels"]
Access = Literal["listed", "gathered", "masked"]
"""How the regions that a region reads are come by; see `attention_over_regions`."""


class RegionRouting(NamedTuple):
    """Which regions read which, regions counted row by row.

    Attributes:
      affinity: of reading region (second axis) and read region (third axis).
      lists: the regions that each region reads, the highest affinity first.
    """

    affinity: Float[Array, "batch regions regions"]
    lists: Int[Array, "batch regions top_k"]


def cut_regions(
    features: Shaped[Array, "*batch height width channels"], regions: int
) -> Shaped[Array, "*batch regions_squared tokens channels"]:
    """The tokens of each of the regions x regions rectangles; regions, and tokens in a region, row by row.

    Raises:
      ValueError: height or width is no multiple of `regions`.
    """
    *batch, height, width, channels = features.shape
    if regions < 1 or height % regions or width % regions:
        raise ValueError(f"regions must divide height and width, {height} x {width}; got {regions}")
    cut = features.reshape(*batch, regions, height // regions, regions, width // regions, channels)
    return cut.swapaxes(-4, -3).reshape(*batch, regions**2, -1, channels)


def uncut_regions(
    cut: Shaped[Array, "*batch regions_squared tokens channels"], height: int, width: int
) -> Shaped[Array, "*batch height width channels"]:
    """The image of `height` x `width` whose regions those are: the inverse of `cut_regions`.

    Raises:
      ValueError: there is no such image.
    """
    *batch, count, tokens, channels = cut.shape
    regions = math.isqrt(count)
    if regions**2 != count or count * tokens != height * width or height % regions or width % regions:
        raise ValueError(f"cut must be square regions of {height} x {width} tokens; got {count} of {tokens}")
    rows = cut.reshape(*batch, regions, regions, height // regions, width // regions, channels)
    return rows.swapaxes(-4, -3).reshape(*batch, height, width, channels)


def route(query: Map, key: Map, *, regions: int, top_k: int, soft: bool = False) -> RegionRouting:
    """The `top_k` regions of highest affinity q̄ · k̄ / √channels, by means of all channels over a region's tokens.

    Tokens that the image lacks where its sizes are no multiple of `regions` count for nothing, and regions without
    any come last. The lists have no gradient, and the affinity has one only if `soft` (equations 3 to 5).

    Raises:
      ValueError: top_k is not from 1 to regions².
    """
    if not 1 <= top_k <= regions**2:
        raise ValueError(f"top_k must be from 1 to the {regions**2} regions; got {top_k}")
    if not soft:
        query, key = jax.lax.stop_gradient((query, key))
    sizes = _there(query.shape[1], query.shape[2], regions).sum(axis=-1)
    divisors = np.maximum(sizes, 1)[:, None].astype(query.dtype)
    mean_query, mean_key = (_padded_regions(each, regions).sum(axis=-2) / divisors for each in (query, key))
    affinity = jnp.einsum("bic,bjc->bij", mean_query, mean_key) * query.shape[-1] ** -0.5
    ranked = jnp.where(sizes > 0, jax.lax.stop_gradient(affinity), -jnp.inf)
    return RegionRouting(affinity, jax.lax.top_k(ranked, top_k)[1])


def attention_over_regions(
    query: Map,
    key: Map,
    value: Map,
    lists: Int[Array, "#batch regions_squared top_k"],
    *,
    heads: int,
    log_gates: Float[Array, "#batch regions_squared top_k"] | None = None,
    scale: float | None = None,
    mask_padding: bool = True,
    access: Access = "listed",
    implementation: str | None = None,
) -> Map:
    """softmax(scale · query keyᵀ + log gates) value, head by head, over the tokens of the regions that lists name.

    Where height or width is no multiple of the regions, zeros are added on the right and below.

    Args:
      lists: for each region the regions that it reads, for all heads alike, none twice. The order does not matter.
      log_gates: a number for each entry of the lists, added to the scores of that region.
      scale: 1/√(channels of a head) by default.
      mask_padding: false: added zeros are read like keys of score 0, as in the released models.
      access: "listed": attention over listed blocks. "gathered": what each region reads is copied together and attended
        to densely: `top_k` times the memory of keys and values, and less time where regions are small. "masked": all
        pairs of tokens have scores, and those of regions that are not listed are masked: the least time where the
        whole map is small.
      implementation: of the kernel (`kernels.attention`).

    Raises:
      ValueError: heads do not divide the channels, lists are not of a square number of regions, or there is no such
        access.
    """
    batch, height, width, channels = query.shape
    regions, heads_of = math.isqrt(lists.shape[-2]), (heads, channels // max(heads, 1))
    if heads < 1 or channels % heads:
        raise ValueError(f"heads must divide the {channels} channels; got {heads}")
    if regions**2 != lists.shape[-2]:
        raise ValueError(f"lists must be of a square number of regions; got {lists.shape[-2]}")
    if access not in get_args(Access):
        raise ValueError(f"access must be one of {', '.join(get_args(Access))}; got {access!r}")
    query, key, value = (_padded_regions(each, regions) for each in (query, key, value))
    cut_shape, tokens = query.shape, query.shape[-2]
    there = _there(height, width, regions)
    there = None if there.all() or not mask_padding else jnp.asarray(there)
    options: dict[str, Any] = {"scale": scale, "implementation": implementation}
    if access == "gathered":
        lists = jnp.broadcast_to(lists, (batch, *lists.shape[1:]))
        key, value = (gather_tokens(each.reshape(batch, regions**2, -1), lists) for each in (key, value))
        query, key, value = (each.reshape(batch, regions**2, -1, *heads_of) for each in (query, key, value))
        bias = None if log_gates is None else jnp.repeat(log_gates, tokens, axis=-1)[:, :, None, None]
        mask = None if there is None else there[lists].reshape(batch, regions**2, 1, 1, -1)
        read = kernels.attention(query, key, value, mask=mask, bias=bias, **options)
    elif access == "masked":
        query, key, value = (each.reshape(batch, -1, *heads_of) for each in (query, key, value))
        listed = lists[..., None] == jnp.arange(regions**2)

        def of_tokens(pairs: Array) -> Array:
            return jnp.repeat(jnp.repeat(pairs, tokens, axis=-2), tokens, axis=-1)[:, None]

        # Of one region everything is read: a mask that says so takes XLA half a minute to fold.
        mask = None if regions == 1 else of_tokens(listed.any(axis=-2))
        if there is not None:
            mask = there.reshape(-1) if mask is None else mask & there.reshape(-1)
        bias = None if log_gates is None else of_tokens(jnp.where(listed, log_gates[..., None], 0).sum(axis=-2))
        read = kernels.attention(query, key, value, mask=mask, bias=bias, **options)
    else:
        query, key, value = (each.reshape(batch, -1, *heads_of) for each in (query, key, value))
        table = kernels.masks.BlockTable(lists[:, None], rows=tokens, columns=tokens)
        gates = None if log_gates is None else log_gates[:, None]
        mask = None if there is None else kernels.masks.Dense(there.reshape(1, -1))
        read, _ = kernels.block_sparse_attention(query, key, value, table, mask=mask, log_gates=gates, **options)
    padded = uncut_regions(read.reshape(cut_shape), height + -height % regions, width + -width % regions)
    return padded[:, :height, :width]


class BiLevelRoutingAttention(nnx.Module):
    """(O + LCE(V)) W_o with O = attention over routed regions of x W_q, x W_k and V = x W_v.

    LCE is a depthwise convolution over V as an image. With one region it is full attention. Biases everywhere; linear
    weights start truncated normal.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        regions: int,
        top_k: int,
        scale: float | None = None,
        kernel: int | None = 5,
        soft: bool = False,
        mask_padding: bool = True,
        access: Access = "listed",
        start: float = 0.02,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Args as in `route` and `attention_over_regions`.

        Args:
          scale: of the scores, 1/√(width of a head) by default; the released models have 1/√width.
          kernel: the side of LCE's window; None: no LCE.
          soft: add the affinities to the scores of the chosen regions, so that the choice is learned. Otherwise it is
            made by queries and keys that learn by what they do among tokens alone, as in the paper.
          start: standard deviation of linear weights at first.
        """
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width of {width}; got {heads}")
        if not 1 <= top_k <= regions**2:
            raise ValueError(f"top_k must be from 1 to the {regions**2} regions; got {top_k}")
        self.regions, self.top_k, self.soft = regions, top_k, soft
        self.heads, self.scale, self.mask_padding = heads, scale, mask_padding
        self.access: Access = access
        self.implementation = implementation
        drawn = jax.nn.initializers.truncated_normal(start)
        self.inner = nnx.Linear(width, 3 * width, kernel_init=drawn, rngs=rngs)
        self.local = (
            None if kernel is None else nnx.Conv(width, width, (kernel,) * 2, feature_group_count=width, rngs=rngs)
        )
        self.outer = nnx.Linear(width, width, kernel_init=drawn, rngs=rngs)

    def __call__(
        self, features: Map, lists: Int[Array, "#batch regions_squared top_k"] | None = None
    ) -> tuple[Map, RegionRouting]:
        """The output, and the routing that led to it.

        Args:
          lists: to be read instead of the regions of highest affinity.
        """
        query, key, value = jnp.split(self.inner(features), 3, axis=-1)
        routing = route(query, key, regions=self.regions, top_k=self.top_k, soft=self.soft)
        if lists is not None:
            routing = RegionRouting(routing.affinity, jnp.broadcast_to(lists, (len(features), *lists.shape[1:])))
        # The softmax of affinities over regions is a gate whose normaliser cancels in the softmax over keys.
        gates = jnp.take_along_axis(*routing, axis=-1) if self.soft else None
        read = attention_over_regions(
            query, key, value, routing.lists, heads=self.heads, log_gates=gates, scale=self.scale,
            mask_padding=self.mask_padding, access=self.access, implementation=self.implementation,
        )  # fmt: skip
        return self.outer(read if self.local is None else read + self.local(value)), routing


def _padded_regions(features: Map, regions: int) -> Float[Array, "batch regions_squared tokens channels"]:
    """Regions of an image with zeros on the right and below where its sizes are no multiple of the regions."""
    _, height, width, _ = features.shape
    return cut_regions(jnp.pad(features, ((0, 0), (0, -height % regions), (0, -width % regions), (0, 0))), regions)


def _there(height: int, width: int, regions: int) -> Bool[np.ndarray, "regions_squared tokens"]:
    """Which tokens of padded regions are the image's."""
    tall, wide = -(-height // regions), -(-width // regions)
    rows, columns = np.arange(regions * tall) < height, np.arange(regions * wide) < width
    image = (rows[:, None] & columns).reshape(regions, tall, regions, wide)
    return image.swapaxes(1, 2).reshape(regions**2, -1)
