"""Multi-head attention whose every head is as wide as its input, so that each head is two circuits.

A head reads its input only through its key-query circuit KᵀQ (which keys a query attends to) and its
output-value circuit OV (what a read key writes). With no positions and no biases the circuits are the whole
head, and attention can run on the inputs themselves: `query` absorbs the key projection, the output absorbs the
value projection, and all heads share one key and one value, which is grouped-query attention with one group.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import kernels


def multi_head_attention(
    queries: Float[Array, "batch query_length features"],
    tokens: Float[Array, "batch key_length features"],
    key_query: Float[Array, "heads features features"],
    output_value: Float[Array, "heads outputs features"],
    *,
    attention: Callable[..., Array] = kernels.attention,
) -> Float[Array, "batch query_length heads outputs"]:
    """OV_h · attention(scores = tokensᵀ KQ_h queries, values = tokens), head by head; the layer's output is the sum.

    Args:
      queries: what asks; not among the tokens unless the caller puts it there.
      key_query: KᵀQ of each head, scaled (He et al. 2025, arXiv 2503.12734, section 3: K_hᵀQ_h/√(d+1)).
      output_value: O V of each head.
      attention: the kernel, e.g. `kernels.attention` or `kernels.linear_attention`.

    Raises:
      ValueError: feature counts or head counts do not fit; the argument is named.
    """
    heads, features = len(key_query), tokens.shape[-1]
    if queries.shape[-1] != features:
        raise ValueError(f"queries must have the tokens' {features} features; got shape {queries.shape}")
    if key_query.shape[1:] != (features, features):
        raise ValueError(f"key_query must read {features} features on both sides; got shape {key_query.shape}")
    if (len(output_value), output_value.shape[-1]) != (heads, features):
        raise ValueError(f"output_value must read {features} features in {heads} heads; got shape {output_value.shape}")
    absorbed = jnp.einsum("hij,bqj->bqhi", key_query, queries)
    shared = tokens[:, :, None]
    read = attention(absorbed, shared, shared, scale=1.0)
    return jnp.einsum("hoi,bqhi->bqho", output_value, read)


class MultiHeadAttention(nnx.Module):
    """Heads of full-width query, key, value and output projections; no bias, no positions, no residual.

    Each projection starts uniform in ±1/√fan_in. The softmax scale is 1/√features.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        attention: Callable[..., Array] = kernels.attention,
    ):
        for name, count in (("features", features), ("heads", heads), ("outputs", outputs)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}")
        bound = features**-0.5
        # One draw for all four: on a CPU, compiling each random draw costs more than running them all.
        shape = (heads, 3 * features + outputs, features)
        drawn = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        query, key, value, output = jnp.split(drawn, [features, 2 * features, 3 * features], axis=1)
        self.query, self.key, self.value = nnx.Param(query), nnx.Param(key), nnx.Param(value)
        self.output = nnx.Param(output)
        self.attention = attention

    def key_query_circuit(self) -> Float[Array, "heads features features"]:
        """K_hᵀQ_h/√features: entry (i, j) is how much key feature i answers query feature j."""
        query = self.query[...]
        return jnp.einsum("hfi,hfj->hij", self.key[...], query) * query.shape[-1] ** -0.5

    def output_value_circuit(self) -> Float[Array, "heads outputs features"]:
        """O_hV_h: entry (o, i) is how much feature i of what is read adds to output o."""
        return jnp.einsum("hof,hfi->hoi", self.output[...], self.value[...])

    def head_outputs(
        self,
        queries: Float[Array, "batch query_length features"],
        tokens: Float[Array, "batch key_length features"],
    ) -> Float[Array, "batch query_length heads outputs"]:
        """What each head adds to the output."""
        return multi_head_attention(
            queries, tokens, self.key_query_circuit(), self.output_value_circuit(), attention=self.attention
        )

    def __call__(
        self,
        queries: Float[Array, "batch query_length features"],
        tokens: Float[Array, "batch key_length features"],
    ) -> Float[Array, "batch query_length outputs"]:
        """The sum of the heads' outputs."""
        return self.head_outputs(queries, tokens).sum(axis=2)
