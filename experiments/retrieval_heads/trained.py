"""A small decoder trained to copy: asked with a token, it says those that followed it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from experiments.retrieval_heads.config import Config, Trained
from experiments.retrieval_heads.reading import Reading
from experiments.retrieval_heads.score import copied, retrieval_score
from jattn.interpret import capture
from jattn.models.language_model import LanguageModel, LanguageModelConfig
from jattn.runs import Run
from jattn.train import Fitted, Generated, create_state, fit


class Copies(NamedTuple):
    """Texts behind which come tokens of theirs, each with those that followed it.

    Attributes:
      begins: where in each text the needles, which the answers repeat, begin.
    """

    tokens: Int[Array, "batch length"]
    begins: Int[Array, "batch asked"]


class Found(NamedTuple):
    """Of one decoder.

    Attributes:
      scores: retrieval score of every head, mean over the texts that are answered rightly.
      accuracy: share of texts whose answer is right in every token.
    """

    scores: Float[np.ndarray, "layers heads"]
    accuracy: float


def build(part: Trained, rngs: nnx.Rngs) -> LanguageModel:
    """The decoder."""
    sizes = LanguageModelConfig(part.vocabulary, part.width, part.layers, part.heads, 4 * part.width)
    return LanguageModel(sizes, rngs=rngs)


def sample(part: Trained, count: int, asked: int, key: Key[Array, ""]) -> Copies:
    """Texts of tokens that differ, and then some of them asked for again, each with those that followed it."""
    words, places = jax.random.split(key)
    keys = jax.random.split(words, count)
    texts = jax.vmap(lambda key: jax.random.permutation(key, part.vocabulary)[: part.length])(keys)
    begins = jax.random.randint(places, (count, asked), 1, part.length - part.copied + 1)
    copies = (begins[..., None] - 1 + jnp.arange(part.copied + 1)).reshape(count, -1)
    return Copies(jnp.concatenate([texts, jnp.take_along_axis(texts, copies, axis=1)], axis=1), begins)


def loss(part: Trained, model: LanguageModel, copies: Copies) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the answers' tokens, and how many of them are right."""
    logits = model(copies.tokens[:, :-1])[:, part.length :]
    said = copies.tokens[:, part.length + 1 :]
    answers = (jnp.arange(said.shape[1]) + 1) % (part.copied + 1) > 0  # the others are the tokens asked with
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, said)
    right = logits.argmax(axis=-1) == said
    return nats.mean(where=answers), {"accuracy": right.mean(where=answers)}


def read(
    part: Trained, model: LanguageModel, copies: Copies
) -> tuple[Int[Array, "texts layers heads rows"], Bool[Array, "texts rows"]]:
    """Which key every head reads most in the rows that answer, and whether they answer rightly."""
    captured = capture(model, copies.tokens[:, :-1], statistics={"layers.*.attention.statistics": ("maximum",)})
    layers = [captured.sites[f"layers.{layer}.attention.statistics"].argmax for layer in range(part.layers)]
    argmax = jnp.stack(layers, axis=1)[..., part.length :]
    right = captured.output[:, part.length :].argmax(axis=-1) == copies.tokens[:, part.length + 1 :]
    return argmax, right


def answering_weights(
    part: Trained, model: LanguageModel, copies: Copies
) -> Float[Array, "layers texts heads rows keys"]:
    """What every head reads in the rows that answer."""
    sites = [f"layers.{layer}.attention.weights" for layer in range(part.layers)]
    captured = capture(model, copies.tokens[:, :-1], sites=sites)
    return jnp.stack([captured.sites[site][..., part.length :, :] for site in sites])


def measure(config: Config, run: Run) -> tuple[list[Found], list[Found], Reading]:
    """Decoders trained, each seed its own, and the same before training; what the best head reads in the first text."""
    part, key, make = config.trained, jax.random.key(config.seed), partial(build, config.trained)
    fitted = fit(
        run,
        "copying",
        build=make,
        loss=partial(loss, part),
        optimiser=part.optimiser(),
        data=Generated(partial(sample, part, part.batch_size, part.asked)),
        key=key,
        schedule=part.schedule(),
        seeds=config.seeds,
    )
    untrained = Fitted(*create_state(make, part.optimiser(), key, config.seeds), config.seeds)
    copies = sample(part, part.tested, 1, jax.random.fold_in(key, 1))
    after = _score(part, fitted, copies)
    return after, _score(part, untrained, copies), _reading(part, fitted, copies, after)


def _score(part: Trained, fitted: Fitted, copies: Copies) -> list[Found]:
    """Before training no answer is right; heads are then scored over all texts, by the tokens to be said."""
    argmax, right = (np.asarray(each) for each in fitted.map(partial(read, part), shared=(copies,)))
    tokens, found = np.asarray(copies.tokens), []
    for seed in range(len(argmax)):
        each = []
        for text, begin, places in zip(tokens, np.asarray(copies.begins)[:, 0].tolist(), argmax[seed], strict=True):
            hits = copied(places, text, text[part.length + 1 :], (begin, begin + part.copied))
            each.append(retrieval_score(hits, places, part.copied))
        whole = right[seed].all(axis=-1)
        kept = whole if whole.any() else np.ones_like(whole)
        found.append(Found(np.stack(each)[kept].mean(axis=0), float(whole.mean())))
    return found


def _reading(part: Trained, fitted: Fitted, copies: Copies, found: list[Found]) -> Reading:
    first = Copies(copies.tokens[:1], copies.begins[:1])
    weights = np.asarray(fitted.map(partial(answering_weights, part), shared=(first,)))
    scores = np.stack([each.scores for each in found])
    seed, layer, head = (int(place) for place in np.unravel_index(scores.argmax(), scores.shape))
    words = [f"{token} " for token in np.asarray(first.tokens)[0].tolist()]
    begin = int(first.begins[0, 0])
    told = f"Head {layer}.{head} of seed {seed}, whose score is {scores.max():.2f}"
    rows = weights[seed, layer, 0, head]
    return Reading(told, words[:-1], words[part.length + 1 :], rows, (begin, begin + part.copied))
