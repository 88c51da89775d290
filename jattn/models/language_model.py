"""Decoder language models as they are published: Llama, Gemma, GPT-2 and their like are configurations of one model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jattn.layers.block import Block
from jattn.layers.feed_forward import Activation, FeedForward, GatedLinearUnit
from jattn.layers.taps import scope, tap
from jattn.mechanisms.causal_self_attention import CausalSelfAttention, KeyValueCache
from jattn.settings import at_least

ACTIVATIONS: dict[str, Activation] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


@dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes of a decoder, and what published ones differ in; by default those of Llama.

    Attributes:
      hidden: width inside feed-forward layers.
      kv_heads: heads of keys and values; None: as many as queries have.
      head_dim: of each head; None: width / heads.
      norm, norm_epsilon: of all norms; "layer" has scale and shift.
      activation, gated: of feed-forward layers: a gated linear unit, or two matrices with biases.
      biases: whether projections of attention have them.
      rotary_bases: of the angles by which positions turn queries and keys; layers take them in turn; None: no angles.
      windows: how many tokens a token reads at most, itself among them; layers take them in turn; None: all before it.
      positions: how many learned positions there are, added to embeddings; None: there are none.
      query_key_norms: whether queries and keys of each head have RMS norms.
      post_norms: whether what attention and feed-forward layers add has norms too.
      scaled_embeddings: whether embeddings are multiplied by √width.
      tied: whether logits are products with embeddings; else they have a matrix of their own.
      scale: factor on scores of attention; None: head_dim ** -0.5.
      score_softcap, logit_softcap: c, where scores or logits x become c · tanh(x / c).
      implementation: of attention, as in `kernels.attention`.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    gated: bool = True
    biases: bool = False
    rotary_bases: tuple[float | None, ...] = (10000.0,)
    windows: tuple[int | None, ...] = (None,)
    positions: int | None = None
    query_key_norms: bool = False
    post_norms: bool = False
    scaled_embeddings: bool = False
    tied: bool = True
    scale: float | None = None
    score_softcap: float | None = None
    logit_softcap: float | None = None
    implementation: str | None = None

    def __post_init__(self) -> None:
        at_least(1, self, "vocabulary", "width", "layers", "heads", "hidden")
        for name, choices in (("norm", ("rms", "layer")), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be among {', '.join(choices)}; got {getattr(self, name)!r}")
        for name in ("rotary_bases", "windows"):
            if not getattr(self, name):
                raise ValueError(f"{name} must have an entry; got none")


def smollm2_135m() -> LanguageModelConfig:
    """SmolLM2-135M (Ben Allal et al. 2025, arXiv 2502.02737)."""
    return LanguageModelConfig(49152, 576, 30, 9, 1536, kv_heads=3, rotary_bases=(100000.0,))


def gemma3_270m() -> LanguageModelConfig:
    """Gemma 3 270M (Gemma Team 2025, arXiv 2503.19786): five local layers, then a global one."""
    return LanguageModelConfig(
        262144, 640, 18, 4, 2048, kv_heads=1, head_dim=256, norm_epsilon=1e-6, activation="gelu_tanh",
        rotary_bases=(10000.0,) * 5 + (1000000.0,), windows=(512,) * 5 + (None,),
        query_key_norms=True, post_norms=True, scaled_embeddings=True,
    )  # fmt: skip


def gpt2() -> LanguageModelConfig:
    """GPT-2, the smallest (Radford et al. 2019)."""
    return LanguageModelConfig(
        50257, 768, 12, 12, 3072, norm="layer", activation="gelu_tanh", gated=False, biases=True,
        rotary_bases=(None,), positions=1024,
    )  # fmt: skip


class DecodingState(NamedTuple):
    """What decoding carries: keys and values of each layer, and how many tokens of each text they are of."""

    layers: tuple[KeyValueCache, ...]
    lengths: Int[Array, " batch"]


class LanguageModel(nnx.Module):
    """Embedding, blocks, norm and logits.

    Sites: embedding, layers.i.* (`Block`), residual (of the last block), norm, logits.
    """

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        places = config.positions
        self.positions = None if places is None else nnx.Embed(places, config.width, rngs=rngs)
        self.blocks = nnx.List([_block(config, layer, rngs) for layer in range(config.layers)])
        self.norm = _norm(config, rngs)
        own = None if config.tied else nnx.Linear(config.width, config.vocabulary, use_bias=False, rngs=rngs)
        self.output = own

    def __call__(
        self, tokens: Int[Array, "batch length"], *, positions: Int[Array, "#batch length"] | None = None
    ) -> Float[Array, "batch length vocabulary"]:
        """Logits of what follows each token.

        Padding behind a text changes nothing before it.

        Args:
          positions: of the tokens, from 0 by default. Who is before whom is a matter of order, not of positions.
        """
        positions = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        features = self.embed(tokens, positions)
        for layer, block in enumerate(self.blocks):
            with scope("layers", layer):
                features = block(features, partial(block.attention, positions=positions))
        return self.logits(tap("residual", features))

    def embed(
        self, tokens: Int[Array, "batch length"], positions: Int[Array, "#batch length"]
    ) -> Float[Array, "batch length width"]:
        """The features that go into the first block."""
        features = self.embedding(tokens)
        if self.config.scaled_embeddings:
            features = features * jnp.asarray(self.config.width**0.5, features.dtype)
        if self.positions is not None:
            features = features + self.positions(positions)
        return tap("embedding", features)

    def logits(self, features: Float[Array, "batch length width"]) -> Float[Array, "batch length vocabulary"]:
        """Of features as the last block gives them; of those before it, what is called the logit lens."""
        features = tap("norm", self.norm(features))
        logits = self.embedding.attend(features) if self.output is None else self.output(features)
        if (cap := self.config.logit_softcap) is not None:
            logits = cap * jnp.tanh(logits / cap)
        return tap("logits", logits)

    def empty_state(self, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> DecodingState:
        """Before any text, with room for that many tokens of each."""
        layers = tuple(block.attention.empty_cache(batch, capacity, dtype) for block in self.blocks)
        return DecodingState(layers, jnp.zeros(batch, jnp.int32))

    def extend(
        self, tokens: Int[Array, "batch length"], state: DecodingState, counts: Int[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch length width"], DecodingState]:
        """Features of the last block for the next tokens of each text, and the state after them.

        The state must have room for all tokens, padding with them: what does not fit goes to wrong places.

        Args:
          counts: how many of the tokens are of each text; those behind are padding, and are forgotten. None: all.
        """
        places = state.lengths[:, None] + jnp.arange(tokens.shape[1])
        features, layers = self.embed(tokens, places), []
        for layer, (block, cache) in enumerate(zip(self.blocks, state.layers, strict=True)):
            # An attention that also puts its cache where it is found after the block has run.
            def attend(features: Array, block: Any = block, cache: KeyValueCache = cache) -> Array:
                read, after = block.attention.extend(features, cache, state.lengths)
                layers.append(after)
                return read

            with scope("layers", layer):
                features = block(features, attend)
        lengths = state.lengths + (tokens.shape[1] if counts is None else counts)
        return tap("residual", features), DecodingState(tuple(layers), lengths)


def _block(config: LanguageModelConfig, layer: int, rngs: nnx.Rngs) -> Block:
    attention = CausalSelfAttention(
        config.width, config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim, bias=config.biases,
        base=_in_turn(config.rotary_bases, layer), window=_in_turn(config.windows, layer), scale=config.scale,
        norm_epsilon=config.norm_epsilon if config.query_key_norms else None, softcap=config.score_softcap,
        implementation=config.implementation, rngs=rngs,
    )  # fmt: skip
    activation = ACTIVATIONS[config.activation]
    layer_type = GatedLinearUnit if config.gated else FeedForward
    return Block(
        _norm(config, rngs), attention, _norm(config, rngs),
        layer_type(config.width, config.hidden, activation, rngs=rngs),
        attention_post_norm=_norm(config, rngs) if config.post_norms else None,
        feed_forward_post_norm=_norm(config, rngs) if config.post_norms else None,
    )  # fmt: skip


def _in_turn(choices: Sequence[Any], layer: int) -> Any:
    return choices[layer % len(choices)]


def _norm(config: LanguageModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    kind = nnx.RMSNorm if config.norm == "rms" else nnx.LayerNorm
    return kind(config.width, epsilon=config.norm_epsilon, rngs=rngs)
