"""Multi-head attention without an order: of a sequence to itself, or to another."""

from jaxtyping import Array, Float

from jattn.layers.attention_heads import AttentionHeads
from jattn.layers.taps import tap
from kernels.masks.algebra import Mask


class FullAttention(AttentionHeads):
    """Σ over heads of softmax(q kᵀ · scale) v W_o, over all tokens that the mask allows (Vaswani et al. 2017)."""

    def __call__(
        self,
        features: Float[Array, "batch length width"],
        others: Float[Array, "batch others width"] | None = None,
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "batch length width"]:
        """The output of every token.

        Args:
          others: what is read, if not the features themselves.
          mask: who may read whom; None: everyone everyone.
        """
        return self.attend(features, *self.keys_and_values(features if others is None else others), mask=mask)

    def keys_and_values(
        self, others: Float[Array, "batch others width"]
    ) -> tuple[Float[Array, "batch others kv_heads head_dim"], Float[Array, "batch others kv_heads head_dim"]]:
        """What is read by, of every head."""
        return tap("key", self.split(self.key(others))), tap("value", self.split(self.value(others)))

    def attend(
        self,
        features: Float[Array, "batch length width"],
        key: Float[Array, "batch others kv_heads head_dim"],
        value: Float[Array, "batch others kv_heads head_dim"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "batch length width"]:
        """As a call, of keys and values that are there already."""
        query = tap("query", self.split(self.query(features)))
        return self.write(self.read(query, key, value, mask))
