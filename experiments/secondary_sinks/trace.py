"""What is kept of a model's run over texts, and what is changed in it: one compiled program for all of it.

Of features only norms and cosines are kept, layers times tokens of them, and the first tokens' own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

import kernels
from experiments.secondary_sinks.detector import CANDIDATES
from jattn.interpret import Add, Rescale, Where, capture, edit, mean_column_weights
from jattn.layers.block import Block
from jattn.models.language_model import LanguageModel


class Intervention(NamedTuple):
    """Changes of what feed-forward layers add: first norms, then vectors.

    Attributes:
      norms: which norm it gets; not a number: its own.
      vectors: what is added to it at each layer.
      positions: where it is.
    """

    norms: Float[np.ndarray, "texts layers tokens"]
    vectors: Float[np.ndarray, "texts layers width"]
    positions: Bool[np.ndarray, "texts layers tokens"]


class Trace(NamedTuple):
    """What is kept of texts.

    Attributes:
      norms: of the features after each block.
      cosines: of these features with those of each candidate for the primary sink.
      scores: mean weight on each token over the queries that may read it, and over heads.
      added_norms: of what the feed-forward layer adds.
      candidates: features of the candidates after each block.
      nats: cross-entropy of each token given those before it; where it is not asked for, of no token.
    """

    norms: Float[np.ndarray, "texts layers tokens"]
    cosines: Float[np.ndarray, "texts candidates layers tokens"]
    scores: Float[np.ndarray, "texts layers tokens"]
    added_norms: Float[np.ndarray, "texts layers tokens"]
    candidates: Float[np.ndarray, "texts candidates layers width"]
    nats: Float[np.ndarray, "texts predicted"]


class Reader(NamedTuple):
    """A model, how many texts it reads in a batch, and what asks between batches whether to stop."""

    model: LanguageModel
    at_once: int
    stop_if_asked: Callable[[], None]


def unchanged(model: LanguageModel, texts: int, length: int) -> Intervention:
    """To be filled in."""
    layers, width = model.config.layers, model.config.width
    return Intervention(
        np.full((texts, layers, length), np.nan, np.float32),
        np.zeros((texts, layers, width), np.float32),
        np.zeros((texts, layers, length), bool),
    )


def trace(
    reader: Reader,
    tokens: Int[np.ndarray, "texts length"],
    intervention: Intervention | None = None,
    *,
    nats: bool = False,
) -> Trace:
    """What is kept of texts of one length; a batch that is not full is filled up with its last text."""
    changes = unchanged(reader.model, *tokens.shape) if intervention is None else intervention
    found = []
    for begin in range(0, len(tokens), reader.at_once):
        reader.stop_if_asked()
        rows = np.arange(begin, begin + reader.at_once).clip(max=len(tokens) - 1)
        norms, vectors, positions = (jnp.asarray(each[rows]) for each in changes)
        batch = _trace(reader.model, jnp.asarray(tokens[rows]), norms, vectors, positions, nats)
        found.append([np.asarray(each)[: len(tokens) - begin] for each in batch])
    return Trace(*(np.concatenate(each) for each in zip(*found, strict=True)))


@nnx.jit(static_argnames=("asked",))
def _trace(
    model: LanguageModel, tokens: Array, norms: Array, vectors: Array, positions: Array, asked: bool
) -> tuple[Array, ...]:
    count, length = model.config.layers, tokens.shape[1]
    residuals = [*(f"layers.{layer}.residual" for layer in range(1, count)), "residual"]
    added = [f"layers.{layer}.feed_forward.output" for layer in range(count)]
    edits = []
    for layer, site in enumerate(added):
        here = norms[:, layer]
        edits.append(edit(site, Rescale(here[..., None]), Where(positions=~jnp.isnan(here))))
        edits.append(edit(site, Add(vectors[:, layer, None]), Where(positions=positions[:, layer])))
    columns = {"layers.*.attention.statistics": (kernels.ColumnSums(),)}
    output, sites = capture(model, tokens, sites=(*residuals, *added), statistics=columns, edits=edits)
    features = [sites[site].astype(jnp.float32) for site in residuals]
    sums = jnp.stack([sites[f"layers.{layer}.attention.statistics"].column_sums for layer in range(count)], axis=1)
    candidates = jnp.stack([each[:, :CANDIDATES] for each in features], axis=2)
    predicted = slice(length - 1 if asked else 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(output[:, predicted], tokens[:, 1:][:, predicted])
    return (
        jnp.stack([jnp.linalg.norm(each, axis=-1) for each in features], axis=1),
        jnp.stack([_cosines(each[:, :CANDIDATES], each) for each in features], axis=2),
        mean_column_weights(sums, length).mean(axis=2),
        jnp.stack([jnp.linalg.norm(sites[site].astype(jnp.float32), axis=-1) for site in added], axis=1),
        candidates,
        nats,
    )


def _cosines(
    references: Float[Array, "texts references width"], features: Float[Array, "texts tokens width"]
) -> Float[Array, "texts references tokens"]:
    one, other = (
        each / jnp.maximum(jnp.linalg.norm(each, axis=-1, keepdims=True), jnp.finfo(each.dtype).tiny)
        for each in (references, features)
    )
    return jnp.einsum("bcw,btw->bct", one, other)


def feed_forward_stages(block: Block, features: Float[Array, "*any width"]) -> dict[str, Float[Array, "*any _"]]:
    """What a gated feed-forward layer makes of features on its way: input, gate, value, activated, product, output."""
    layer: Any = block.feed_forward
    given = block.feed_forward_norm(features)
    gate, value = jnp.split(layer.inner(given), 2, axis=-1)
    activated = layer.activation(gate)
    return {
        "input": given,
        "gate": gate,
        "value": value,
        "activated": activated,
        "product": activated * value,
        "output": layer.outer(activated * value),
    }


def stage_cosines(
    reader: Reader, tokens: Int[np.ndarray, "texts length"], layer: int, creating: int, primary: int
) -> Mapping[str, Float[np.ndarray, "texts length"]]:
    """Cosine of every token with the primary sink at each stage of a feed-forward layer.

    Besides, under "output, of the primary's making": of the layer's output with that which the primary sink gets in the
    layer `creating`, which made it.
    """
    found = []
    for begin in range(0, len(tokens), reader.at_once):
        reader.stop_if_asked()
        rows = np.arange(begin, begin + reader.at_once).clip(max=len(tokens) - 1)
        batch = _stage_cosines(reader.model, jnp.asarray(tokens[rows]), layer, creating, primary)
        found.append({name: np.asarray(each)[: len(tokens) - begin] for name, each in batch.items()})
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


@nnx.jit(static_argnames=("layer", "creating", "primary"))
def _stage_cosines(model: LanguageModel, tokens: Array, layer: int, creating: int, primary: int) -> dict[str, Array]:
    middle, made = f"layers.{layer}.middle", f"layers.{creating}.feed_forward.output"
    sites = capture(model, tokens, sites=(middle, made)).sites
    stages = feed_forward_stages(model.blocks[layer], sites[middle].astype(jnp.float32))
    here = slice(primary, primary + 1)
    found = {name: _cosines(each[:, here], each)[:, 0] for name, each in stages.items()}
    return {**found, "output, of the primary's making": _cosines(sites[made][:, here], stages["output"])[:, 0]}
