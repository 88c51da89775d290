"""Runs of a language model's last token alone, behind prompts that are read once: sweeps, rows, heads changed.

Heads are patched, looked at and changed where the answer is given. Tokens before it are then those of the prompt as it
is, and what is computed of them, keys and values, is computed once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jattn.interpret import (
    Edit,
    OverrideRow,
    Receiver,
    Where,
    attribute_heads,
    capture,
    edit,
    mask_heads,
    one_head_each,
    path_patch,
)
from jattn.models.language_model import DecodingState, LanguageModel

WEIGHTS, HEADS, ATTENTION, QUERY = (
    f"layers.{{}}.attention.{name}" for name in ("weights", "head_output", "attention", "query")
)


class Read(NamedTuple):
    """Prompts that have been read.

    Attributes:
      last: the last token of each.
      state: after all tokens before it.
    """

    last: Int[Array, "prompts 1"]
    state: DecodingState


@nnx.jit(static_argnames=("capacity",))
def read(
    model: LanguageModel, tokens: Int[Array, "prompts length"], lengths: Int[Array, " prompts"], capacity: int
) -> Read:
    """Prompts, padded behind, up to their last tokens, with room for so many."""
    _, state = model.extend(tokens, model.empty_state(len(tokens), capacity), lengths - 1)
    return Read(jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1), state)


def margins(
    model: LanguageModel,
    right: Int[Array, " prompts"],
    wrong: Int[Array, " prompts"],
    last: Int[Array, "prompts 1"],
    state: DecodingState,
) -> Float[Array, " prompts"]:
    """Logit of the right answer less that of the wrong one, without making the others.

    Raises:
      ValueError: the model's logits are not products with its embeddings.
    """
    if model.config.logit_softcap is not None or not model.config.tied:
        raise ValueError("model must have tied embeddings and no logit_softcap, so that margins are linear in features")
    features = model.norm(model.extend(last, state)[0][:, 0])
    return (features * (model.embedding(right) - model.embedding(wrong))).sum(axis=-1)


@nnx.jit
def margin(model: LanguageModel, prompts: Read, right: Array, wrong: Array) -> Float[Array, " prompts"]:
    """`margins`, of prompts as they are."""
    return margins(model, right, wrong, *prompts)


@nnx.jit(static_argnames=("layers", "freeze_feed_forward", "at_once"))
def _sweep(
    model: LanguageModel,
    clean: Read,
    corrupt: Read,
    answers: tuple[Array, Array],
    senders: Bool[Array, "senders layers heads"],
    receivers: Bool[Array, "layers heads"],
    layers: tuple[int, ...],
    freeze_feed_forward: bool,
    at_once: int,
) -> Float[Array, "senders prompts"]:
    queries = [Receiver(QUERY.format(layer), Where(heads=receivers[layer])) for layer in layers]

    def one(senders: Array) -> Array:
        model_of = partial(margins, model, *answers)
        return path_patch(
            model_of, tuple(clean), tuple(corrupt), senders, queries, freeze_feed_forward=freeze_feed_forward
        )

    return jax.lax.map(one, senders, batch_size=at_once)


def sweep(
    model: LanguageModel,
    clean: Read,
    corrupt: Read,
    answers: tuple[Array, Array],
    *,
    receivers: Bool[np.ndarray, "layers heads"] | None = None,
    freeze_feed_forward: bool = False,
    at_once: int = 9,
) -> Float[np.ndarray, "layers heads prompts"]:
    """Margins where one head has its output of the corrupted prompt in the last row, head by head.

    Args:
      answers: right and wrong ones.
      receivers: heads whose queries alone the change goes on through; None: the output. Senders in their layers or
        behind cannot reach them all and are not run where they reach none: their margins are the clean ones.
      at_once: senders in one batch.
    """
    config = model.config
    to = np.zeros((config.layers, config.heads), bool) if receivers is None else receivers
    layers = tuple(np.flatnonzero(to.any(axis=1)).tolist())
    run = max(layers) if layers else config.layers
    masks = one_head_each(config.layers, config.heads)[: run * config.heads]
    found = np.broadcast_to(
        np.asarray(margin(model, clean, *answers)), (config.layers, config.heads, len(answers[0]))
    ).copy()
    if len(masks):
        made = _sweep(model, clean, corrupt, answers, masks, jnp.asarray(to), layers, freeze_feed_forward, at_once)
        found[:run] = np.asarray(made).reshape(run, config.heads, -1)
    return found


@nnx.jit
def attribution(
    model: LanguageModel, clean: Read, corrupt: Read, right: Array, wrong: Array
) -> Float[Array, "layers heads"]:
    """What the slope of the mean margin says of every head's output of the corrupted prompt, nothing frozen."""
    one = partial(margins, model, right, wrong)
    return attribute_heads(one, tuple(clean), tuple(corrupt), jnp.mean, model.config.layers)


@nnx.jit
def rows(model: LanguageModel, prompts: Read) -> Float[Array, "layers prompts heads length"]:
    """Attention weights of the last token."""
    captured = capture(model.extend, *prompts, sites=[WEIGHTS.format("*")])
    return jnp.stack([captured.sites[WEIGHTS.format(layer)][:, :, 0] for layer in range(model.config.layers)])


@nnx.jit
def mean_outputs(model: LanguageModel, prompts: Read) -> Float[Array, "layers heads head_dim"]:
    """Of every head, in the last row, over prompts."""
    captured = capture(model.extend, *prompts, sites=[HEADS.format("*")])
    return jnp.stack([captured.sites[HEADS.format(layer)].mean(axis=(0, 1)) for layer in range(model.config.layers)])


@nnx.jit
def margin_of_circuit(
    model: LanguageModel,
    prompts: Read,
    right: Array,
    wrong: Array,
    kept: Bool[Array, "layers heads"],
    means: Float[Array, "layers heads head_dim"],
) -> Float[Array, " prompts"]:
    """Margins where all heads but those kept have their mean output in the last row."""
    return capture(margins, model, right, wrong, *prompts, edits=mask_heads(~kept, "mean", means=means)).output


@nnx.jit
def override(
    model: LanguageModel,
    prompts: Read,
    heads: Bool[Array, "layers heads"],
    weights: Float[Array, "prompts length"],
) -> Float[Array, "prompts vocabulary"]:
    """Logits where some heads read by given weights in the last row."""
    row = jnp.zeros(len(weights), jnp.int32)
    edits: Sequence[Edit] = [
        edit(ATTENTION.format(layer), OverrideRow(row, weights[:, None], heads[layer]))
        for layer in range(model.config.layers)
    ]

    def last(*prompts: Any) -> Float[Array, "prompts vocabulary"]:
        return model.logits(model.extend(*prompts)[0])[:, 0]

    return capture(last, *prompts, edits=edits).output
