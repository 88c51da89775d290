"""BiFormer: image classification by bi-level routing attention (Zhu et al., CVPR 2023, arXiv 2303.08810)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jattn.mechanisms.bi_level_routing import Access, BiLevelRoutingAttention, RegionRouting

Map = Float[Array, "batch height width channels"]
Lists = Int[Array, "#batch regions_squared top_k"]


@dataclass(frozen=True)
class BiFormerConfig:
    """Sizes of the model; a stage for each entry of `depths`, the first at a quarter of the image's resolution.

    Attributes:
      depths, widths: blocks and channels of each stage.
      top_k: of each stage the regions that a region reads; None: full attention.
      regions: how many divide each side.
      head_width: channels of a head.
      hidden: channels inside a feed-forward layer over those outside.
      position_kernel, local_kernel: sides of the depthwise convolutions of a block and of its attention; None: none.
      positions: side of a map of learned positions, added before the first block; None: there is none.
      swin_layout: patches of 4 and merging of 2 that do not overlap, as in Swin (Liu et al. 2021, arXiv 2103.14030),
        instead of convolutions of side 3.
      scale_by_width: scores of routed stages are divided by √width as in the released models, not by √head_width.
      start: standard deviation of linear weights at first.
      drop_path: rate at which the last block's branches are left out in training; earlier ones' rise to it linearly.
      soft, mask_padding, access, implementation: as in `BiLevelRoutingAttention`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    top_k: tuple[int | None, ...] = (1, 4, 16, None)
    regions: int = 7
    head_width: int = 32
    hidden: int = 3
    channels: int = 3
    classes: int = 1000
    position_kernel: int | None = 3
    local_kernel: int | None = 5
    positions: int | None = None
    swin_layout: bool = False
    scale_by_width: bool = True
    start: float = 0.02
    drop_path: float = 0.0
    soft: bool = False
    mask_padding: bool = True
    access: Access = "listed"
    implementation: str | None = None

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.widths) == len(self.top_k) > 0:
            raise ValueError(
                f"depths, widths and top_k must have an entry a stage; got {self.depths}, {self.widths}, {self.top_k}"
            )
        if any(width % self.head_width for width in self.widths):
            raise ValueError(f"head_width must divide all widths {self.widths}; got {self.head_width}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be from 0 to below 1; got {self.drop_path}")


TINY = BiFormerConfig(depths=(2, 2, 8, 2), widths=(64, 128, 256, 512))
SMALL = BiFormerConfig(depths=(4, 4, 18, 4), widths=(64, 128, 256, 512))
BASE = BiFormerConfig(depths=(4, 4, 18, 4), widths=(96, 192, 384, 768))
SWIN_TINY_LAYOUT = BiFormerConfig(
    depths=(2, 2, 6, 2), widths=(96, 192, 384, 768), hidden=4, position_kernel=None, swin_layout=True
)
"""BiFormer-T, -S, -B and -STL. Images of 224 need no padding; at others the released models read it."""


class BiFormerBlock(nnx.Module):
    """x += depthwise convolution(x); x += attention(norm(x)); x += feed-forward(norm(x))."""

    def __init__(self, config: BiFormerConfig, stage: int, *, drop_path: float = 0.0, rngs: nnx.Rngs):
        width, top_k = config.widths[stage], config.top_k[stage]
        routed = top_k is not None
        start = jax.nn.initializers.truncated_normal(config.start)
        side = config.position_kernel
        self.position = (
            None if side is None else nnx.Conv(width, width, (side, side), feature_group_count=width, rngs=rngs)
        )
        self.attention_norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attention = BiLevelRoutingAttention(
            width,
            width // config.head_width,
            regions=config.regions if routed else 1,
            top_k=top_k if routed else 1,
            scale=width**-0.5 if routed and config.scale_by_width else None,
            kernel=config.local_kernel,
            soft=config.soft,
            mask_padding=config.mask_padding,
            access=config.access,
            start=config.start,
            implementation=config.implementation,
            rngs=rngs,
        )
        self.feed_forward_norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.inner = nnx.Linear(width, config.hidden * width, kernel_init=start, rngs=rngs)
        self.outer = nnx.Linear(config.hidden * width, width, kernel_init=start, rngs=rngs)
        self.drop_path = nnx.Dropout(drop_path, broadcast_dims=(1, 2, 3), rngs=rngs)

    def __call__(self, features: Map, lists: Lists | None = None) -> tuple[Map, RegionRouting]:
        """Features and routing; `lists`: to be read instead of the regions of highest affinity."""
        if self.position is not None:
            features = features + self.position(features)
        read, routing = self.attention(self.attention_norm(features), lists)
        features = features + self.drop_path(read)
        hidden = jax.nn.gelu(self.inner(self.feed_forward_norm(features)), approximate=False)
        return features + self.drop_path(self.outer(hidden)), routing


class BiFormer(nnx.Module):
    """Stages of blocks at half the resolution each, then norm, mean over the image, and logits.

    Batch norms keep running statistics (`nnx.BatchStat`); `eval()` uses them and drops no path.
    """

    def __init__(self, config: BiFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        total = sum(config.depths)
        rates = [config.drop_path * block / max(total - 1, 1) for block in range(total)]
        self.stages, self.downsampling = nnx.List([]), nnx.List([])
        for stage, depth in enumerate(config.depths):
            first = sum(config.depths[:stage])
            self.downsampling.append(_downsampling(config, stage, rngs))
            blocks = [BiFormerBlock(config, stage, drop_path=rate, rngs=rngs) for rate in rates[first : first + depth]]
            self.stages.append(nnx.List(blocks))
        start = jax.nn.initializers.truncated_normal(config.start)
        shape = (config.positions, config.positions, config.widths[0])
        self.positions = None if config.positions is None else nnx.Param(start(rngs.params(), shape))
        self.norm = _batch_norm(config.widths[-1], rngs)
        self.logits = nnx.Linear(config.widths[-1], config.classes, kernel_init=start, rngs=rngs)

    def __call__(
        self, images: Map, lists: Sequence[Lists] | None = None
    ) -> tuple[Float[Array, "batch classes"], tuple[RegionRouting, ...]]:
        """Logits, and the routing of every block; that of a block with full attention says nothing.

        Args:
          lists: for each block, to be read instead of the regions of highest affinity.
        """
        features, routings = self.features(images, lists)
        return self.logits(features.mean(axis=(1, 2))), routings

    def features(
        self, images: Map, lists: Sequence[Lists] | None = None
    ) -> tuple[Float[Array, "batch rows columns features"], tuple[RegionRouting, ...]]:
        """What logits are made of the mean of, as a map; otherwise as a call."""
        features, routings = images, []
        for stage, (downsample, blocks) in enumerate(zip(self.downsampling, self.stages, strict=True)):
            features = downsample(features)
            if stage == 0 and self.positions is not None:
                features = features + self.positions[...]
            for block in blocks:
                features, routing = block(features, None if lists is None else lists[len(routings)])
                routings.append(routing)
        return self.norm(features), tuple(routings)


def multiply_adds(config: BiFormerConfig, size: int) -> int:
    """Products that are summed in the forward pass of one image of size x size: matrices, convolutions, attention."""
    total, channels, side = 0, config.channels, size
    for stage, (depth, width, top_k) in enumerate(zip(config.depths, config.widths, config.top_k, strict=True)):
        for kernel, stride, outputs in _convolutions(config, stage):
            side = side // stride if config.swin_layout else -(-side // stride)
            total += side**2 * kernel**2 * channels * outputs
            channels = outputs
        regions = config.regions if top_k is not None else 1
        tokens = (-(-side // regions)) ** 2
        linear = (4 + 2 * config.hidden) * side**2 * width**2
        local = ((config.local_kernel or 0) ** 2 + (config.position_kernel or 0) ** 2) * side**2 * width
        total += depth * (linear + local + attention_multiply_adds(tokens, regions, top_k or 1) * width)
    return total + config.widths[-1] * config.classes


def attention_multiply_adds(tokens: int, regions: int, top_k: int) -> int:
    """Those of routing and attention, for each channel, with regions x regions regions of so many tokens."""
    return regions**4 + 2 * regions**2 * tokens * top_k * tokens


def _convolutions(config: BiFormerConfig, stage: int) -> list[tuple[int, int, int]]:
    """Side, stride and outputs of the convolutions before a stage."""
    width = config.widths[stage]
    if config.swin_layout:
        return [(4, 4, width) if stage == 0 else (2, 2, width)]
    return [(3, 2, width // 2), (3, 2, width)] if stage == 0 else [(3, 2, width)]


def _downsampling(config: BiFormerConfig, stage: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """Convolutions with a batch norm after each, GELU between; in Swin's layout merging has the norm before."""
    inputs = config.channels if stage == 0 else config.widths[stage - 1]
    layers: list = []
    for kernel, stride, outputs in _convolutions(config, stage):
        if layers:
            layers.append(lambda features: jax.nn.gelu(features, approximate=False))
        padding = 0 if config.swin_layout else 1
        layers.append(nnx.Conv(inputs, outputs, (kernel, kernel), strides=stride, padding=padding, rngs=rngs))
        layers.append(_batch_norm(outputs, rngs))
        inputs = outputs
    if config.swin_layout and stage > 0:
        layers = [_batch_norm(config.widths[stage - 1], rngs), layers[0]]
    return nnx.Sequential(*layers)


def _batch_norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)
