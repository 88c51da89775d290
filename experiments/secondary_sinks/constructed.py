"""A decoder whose weights are set by hand so that its sinks are known: what the experiment finds in it can be told.

Tokens share a direction, by which queries look for that of sinks. The first token has another direction of its own,
which block 1 turns into a long vector, the primary sink; so has one token more, which block 3 turns into a shorter
vector of the same direction: a secondary sink. Block 6 takes the first one away again. All other weights are small.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from jattn.models.language_model import LanguageModel, LanguageModelConfig

VOCABULARY, WIDTH, LAYERS = 24, 32, 8
FIRST, SINK = 0, 1
"""Tokens: the one that begins every text, and the one that becomes a secondary sink."""
PRIMARY_BLOCK, SINK_BLOCK, LAST_BLOCK = 1, 3, 6
"""The blocks that make the primary sink and the secondary ones, and the block that takes the primary sink away."""
PRIMARY_NORM, SINK_NORM = 50.0, 30.0
SMALL = 0.1
"""Factor on the weights that are drawn."""


def build(seed: int) -> LanguageModel:
    """The decoder."""
    sizes = LanguageModelConfig(VOCABULARY, WIDTH, LAYERS, 2, 16, kv_heads=1, rotary_bases=(None,))
    model = LanguageModel(sizes, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    shared, first, sink, long, *others = directions.T
    tokens = rng.normal(size=(VOCABULARY, len(others))) / len(others) ** 0.5 @ np.array(others)
    tokens[[FIRST, SINK]] = first, sink
    model.embedding.embedding[...] = jnp.asarray(tokens + shared, jnp.float32)
    for layer, block in enumerate(model.blocks):
        attention = block.attention
        feed_forward: Any = block.feed_forward
        for each in (attention.query, attention.key, attention.value, attention.output, feed_forward.inner):
            each.kernel[...] *= SMALL
        feed_forward.outer.kernel[...] *= SMALL
        # Every head of queries looks along its first axis for what the key has there.
        attention.query.kernel[...] = attention.query.kernel[...].at[:, :: attention.head_dim].set(shared[:, None])
        attention.key.kernel[...] = attention.key.kernel[...].at[:, 0].set(long)
        # The first feature inside is x silu(x), of what the features have along a direction.
        along = {PRIMARY_BLOCK: first, SINK_BLOCK: sink, LAST_BLOCK: long}.get(layer)
        if along is not None:
            hidden = feed_forward.outer.kernel.shape[0]
            inner = feed_forward.inner.kernel[...]
            feed_forward.inner.kernel[...] = inner.at[:, 0].set(along).at[:, hidden].set(along)
            present = (WIDTH / 2) ** 0.5 if layer != LAST_BLOCK else WIDTH**0.5
            product = present**2 / (1 + np.exp(-present))
            norm = {PRIMARY_BLOCK: PRIMARY_NORM, SINK_BLOCK: SINK_NORM, LAST_BLOCK: -PRIMARY_NORM}[layer]
            feed_forward.outer.kernel[...] = feed_forward.outer.kernel[...].at[0].set(long * norm / product)
    return model


def texts(count: int, length: int, seed: int) -> Int[np.ndarray, "count length"]:
    """Tokens drawn at random behind the first one."""
    tokens = np.random.default_rng(seed).integers(FIRST + 1, VOCABULARY, (count, length))
    tokens[:, 0] = FIRST
    return tokens
