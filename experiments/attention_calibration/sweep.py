"""A model run on from any layer, with attention calibrated in any heads, as one compiled program.

The blocks' parameters are put side by side, so that a layer is a number, and what comes before the layer concerned is
read once. Which heads are calibrated is an array: a sweep compiles nothing anew.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

import kernels
from jattn.interpret import CalibrateColumns, CalibrateSinks, capture, edit, mean_column_weights
from jattn.models.language_model import LanguageModel


class Stack(NamedTuple):
    """A model whose blocks are alike, and their parameters along a first axis of layers.

    Attributes:
      answers: the tokens of two answers.
      at_once: prompts in one batch.
    """

    model: LanguageModel
    graph: Any
    state: Any
    answers: tuple[int, int]
    at_once: int


class Reading(NamedTuple):
    """Prompts as the model reads them, nothing changed.

    Attributes:
      residuals: features before each of some layers, from `first` on.
      scores: the mean weight on every key over the rows that may read it, of all layers.
      preferences: the logit of the second answer less that of the first.
    """

    residuals: Float[np.ndarray, "some_layers prompts length width"]
    first: int
    scores: Float[np.ndarray, "layers prompts heads length"]
    preferences: Float[np.ndarray, " prompts"]


def stack(model: LanguageModel, answers: tuple[int, int], at_once: int) -> Stack:
    """The model's blocks side by side.

    Raises:
      ValueError: they differ in more than parameters.
    """
    graphs, states = zip(*(nnx.split(block) for block in model.blocks), strict=True)
    if any(graph != graphs[0] for graph in graphs):
        raise ValueError("model must have layers that are alike; they differ in more than parameters")
    return Stack(model, graphs[0], jax.tree.map(lambda *each: jnp.stack(each), *states), answers, at_once)


def read(stack: Stack, tokens: Int[np.ndarray, "prompts length"], layers: tuple[int, int]) -> Reading:
    """Prompts read once, features before the layers given kept."""
    residuals, scores, preferences = [], [], []
    for batch in batches(len(tokens), stack.at_once):
        features = _embed(stack.model, jnp.asarray(tokens[batch]))
        after, (before, columns) = _read(stack.graph, stack.state, features)
        own = len(np.unique(batch))
        residuals.append(np.asarray(before[slice(*layers)])[:, :own])
        scores.append(np.asarray(columns)[:, :own])
        preferences.append(_prefer(stack, after[:, -1])[:own])
    return Reading(
        np.concatenate(residuals, axis=1), layers[0], np.concatenate(scores, axis=1), np.concatenate(preferences)
    )


def find_sinks(scores: Float[np.ndarray, "*any length"], threshold: float) -> Bool[np.ndarray, "*any length"]:
    """Keys behind the first whose mean weight is above a threshold."""
    return (scores > threshold) & (np.arange(scores.shape[-1]) > 0)


def calibrate_alone(
    stack: Stack, reading: Reading, threshold: float, factor: float
) -> Float[np.ndarray, "some_layers heads prompts"]:
    """Preferences with one head calibrated, for every head of the layers whose features are kept.

    Only where the head has a sink is anything run: elsewhere the preference is the very one of the unchanged model.
    """
    layers, _, heads, _ = reading.scores.shape
    prompts = len(reading.preferences)
    found = np.broadcast_to(reading.preferences, (len(reading.residuals), heads, prompts)).copy()
    for place, residual in enumerate(reading.residuals):
        layer = reading.first + place
        pairs = np.argwhere(find_sinks(reading.scores[layer], threshold).any(axis=-1))
        for batch in batches(len(pairs), stack.at_once):
            prompt, head = pairs[batch].T
            mask = np.zeros((layers, len(batch), heads), bool)
            mask[layer, np.arange(len(batch)), head] = True
            change = calibrate_sinks(mask, threshold, factor)
            found[place, head, prompt] = go_on(stack, jnp.asarray(residual[prompt]), layer, change)
    return found


def calibrate_together(
    stack: Stack, reading: Reading, change: CalibrateSinks | CalibrateColumns
) -> Float[np.ndarray, " prompts"]:
    """Preferences under a change of all layers; its first axis is of layers, and its second of prompts."""
    found = np.zeros_like(reading.preferences)
    for batch in batches(len(found), stack.at_once):
        each = jax.tree.map(lambda leaf, batch=batch: leaf[:, batch] if leaf.ndim > 1 else leaf, change)
        found[batch] = go_on(stack, jnp.asarray(reading.residuals[0][batch]), reading.first, each)
    return found


def calibrate_sinks(
    heads: Bool[np.ndarray, "layers batch heads"], threshold: float, factor: float, spare: int = 1
) -> CalibrateSinks:
    """The change of every layer: its leaves' first axis is of layers."""
    count = len(heads)
    return CalibrateSinks(
        jnp.asarray(heads), jnp.full(count, threshold), jnp.full(count, factor), jnp.full(count, spare)
    )


def go_on(
    stack: Stack, features: Float[Array, "batch length width"], first: int, change: CalibrateSinks | CalibrateColumns
) -> Float[np.ndarray, " batch"]:
    """Preferences, from the features before a layer; in each layer attention is changed by its part of the change."""
    masks = change.heads if isinstance(change, CalibrateSinks) else change.columns
    changed = jnp.asarray(masks).any(axis=tuple(range(1, masks.ndim)))
    return _prefer(stack, _go_on(stack.graph, stack.state, features, jnp.asarray(first), change, changed))


def batches(count: int, at_once: int) -> Iterator[Int[np.ndarray, " at_once"]]:
    """Places from 0, as many at a time; at the end the last is repeated."""
    for begin in range(0, count, at_once):
        yield np.minimum(np.arange(begin, begin + at_once), count - 1)


def _prefer(stack: Stack, features: Float[Array, "batch width"]) -> Float[np.ndarray, " batch"]:
    logits = np.asarray(_logits(stack.model, features))
    return logits[:, stack.answers[1]] - logits[:, stack.answers[0]]


@nnx.jit
def _embed(model: LanguageModel, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
    return model.embed(tokens, jnp.arange(tokens.shape[1])[None])


@nnx.jit
def _logits(model: LanguageModel, features: Float[Array, "batch width"]) -> Float[Array, "batch vocabulary"]:
    return model.logits(features[:, None])[:, 0]


@partial(jax.jit, static_argnames="graph")
def _read(graph: Any, state: Any, features: Float[Array, "batch length width"]) -> Any:
    def layer(features: Array, state: Any) -> Any:
        asked = {"attention.statistics": (kernels.ColumnSums(),)}
        captured = capture(nnx.merge(graph, state), features, statistics=asked)
        sums = captured.sites["attention.statistics"].column_sums
        return captured.output, (features, mean_column_weights(sums, features.shape[1]))

    return jax.lax.scan(layer, features, state)


@partial(jax.jit, static_argnames="graph")
def _go_on(
    graph: Any,
    state: Any,
    features: Float[Array, "batch length width"],
    first: Int[Array, ""],
    change: CalibrateSinks | CalibrateColumns,
    changed: Bool[Array, " layers"],
) -> Float[Array, "batch width"]:
    def layer(place: Array, features: Array) -> Array:
        own, here = jax.tree.map(lambda leaf: leaf[place], (state, change))
        block = nnx.merge(graph, own)

        def calibrated(features: Array) -> Array:
            return capture(block, features, edits=[edit("attention.attention", here)]).output

        return jax.lax.cond(changed[place], calibrated, lambda features: block(features), features)

    return jax.lax.fori_loop(first, len(changed), layer, features)[:, -1]
