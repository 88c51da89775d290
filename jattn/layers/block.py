"""The block of a transformer: attention and a feed-forward layer, each added to the features."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jattn.layers.taps import scope, tap

Features = Float[Array, "batch length width"]


class Block(nnx.Module):
    """x += attention(norm(x)); x += feed-forward(norm(x)); or with other norms behind attention and feed-forward.

    Sites: residual (the features that come in), attention.output (what is added), middle (the features between),
    feed_forward.output, and those of attention and feed-forward layer.
    """

    def __init__(
        self,
        attention_norm: nnx.Module,
        attention: Any,
        feed_forward_norm: nnx.Module,
        feed_forward: nnx.Module,
        *,
        attention_post_norm: nnx.Module | None = None,
        feed_forward_post_norm: nnx.Module | None = None,
    ):
        """Of layers that map features to as many; post-norms are of what is added."""
        self.attention_norm, self.attention = attention_norm, attention
        self.feed_forward_norm, self.feed_forward = feed_forward_norm, feed_forward
        self.attention_post_norm, self.feed_forward_post_norm = attention_post_norm, feed_forward_post_norm

    def __call__(self, features: Features, attend: Callable[[Features], Features] | None = None) -> Features:
        """The features after the block; `attend` stands for the block's attention with more arguments given."""
        features = tap("residual", features)
        with scope("attention"):
            read = (attend or self.attention)(self.attention_norm(features))
            read = tap("output", _normed(self.attention_post_norm, read))
        features = tap("middle", features + read)
        with scope("feed_forward"):
            made = self.feed_forward(self.feed_forward_norm(features))
            made = tap("output", _normed(self.feed_forward_post_norm, made))
        return features + made


def _normed(norm: Any, features: Features) -> Features:
    return features if norm is None else norm(features)
