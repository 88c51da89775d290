"""A published model: which of its heads copy needles into answers, and what it answers without them."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from experiments.retrieval_heads.config import CLAIMED, MODES, Pretrained
from experiments.retrieval_heads.needles import HELD_OUT, SCORED, Encode, Needle, Prompt, build_prompt
from experiments.retrieval_heads.reading import Reading
from experiments.retrieval_heads.score import copied, mean_score, recall, retrieval_score
from jattn.data.text import moby_dick, state_of_the_union
from jattn.interpret import capture, mask_heads, random_heads
from jattn.interpret.edit import HeadMode
from jattn.models.generate import ReadPrompt, continue_prompt, read_prompt
from jattn.models.language_model import LanguageModel

log = logging.getLogger("jattn")

END_OF_TURN = "<|im_end|>"


class Answers(NamedTuple):
    """Of each prompt.

    Attributes:
      tokens, texts: what was said, without the token that ends it.
      recalls: the share of its needle's words in it.
    """

    tokens: list[list[int]]
    texts: list[str]
    recalls: Float[np.ndarray, " prompts"]


class Scores(NamedTuple):
    """Of each run and head, the retrieval score in the released code's form.

    Attributes:
      times: as it is; `set_form`: as the paper has it.
      looking: the score without the condition on the token.
      elsewhere: of another span, as long.
    """

    times: Float[np.ndarray, "runs layers heads"]
    set_form: Float[np.ndarray, "runs layers heads"]
    looking: Float[np.ndarray, "runs layers heads"]
    elsewhere: Float[np.ndarray, "runs layers heads"]


class Reader(NamedTuple):
    """A model, its tokenizer, and what is asked of it.

    Attributes:
      decode: tokens -> text.
      stop: the tokens that end an answer.
    """

    model: LanguageModel
    encode: Encode
    decode: Callable[[Sequence[int]], str]
    stop: tuple[int, ...]
    part: Pretrained


class Found(NamedTuple):
    """What one run measures; all recalls by prompt.

    Attributes:
      scored, held_out: answers to the needles that score heads, and to those that test masks.
      absent: answers without the needle; `shuffled`: with its tokens out of order.
      scores: of the scored; `absent_scores`, `shuffled_scores`: of those prompts.
      best: heads by falling mean score, as layer times heads plus head.
      without: recalls without the best heads, by mode and number of heads.
      without_random, without_alike: recalls without ten random heads, of any layer and of the layers of the ten best.
      invented: answers without the best heads, by mode and number.
    """

    scored: Answers
    held_out: Answers
    absent: Answers
    shuffled: Answers
    scores: Scores
    absent_scores: Scores
    shuffled_scores: Scores
    best: Int[np.ndarray, " all_heads"]
    without: dict[str, dict[int, Float[np.ndarray, " prompts"]]]
    without_random: Float[np.ndarray, "sets prompts"]
    without_alike: Float[np.ndarray, "sets prompts"]
    invented: dict[str, list[str]]


def haystacks(encode: Encode, length: int) -> list[list[int]]:
    """Tokens of the first chapters of a novel, and of an address to Congress."""
    novel = b"\n".join(each.content for each in moby_dick().documents if each.name in ("chapter_1", "chapter_2"))
    speech = next(each.content for each in state_of_the_union().documents if each.name.startswith("1861"))
    characters = 12 * length  # more than enough: no token of running text has so many
    return [encode(" ".join(text.decode()[:characters].split()))[: 2 * length] for text in (novel, speech)]


def prompts(reader: Reader, needles: Sequence[Needle], depths: Sequence[float], **options: Any) -> list[Prompt]:
    """Every needle in every haystack at every depth."""
    straws = haystacks(reader.encode, reader.part.length)
    build = partial(build_prompt, reader.encode, length=reader.part.length, **options)
    return [build(needle, haystack, depth) for needle in needles for haystack in straws for depth in depths]


@nnx.jit(static_argnames=("steps",))
def _read(model: LanguageModel, tokens: Int[Array, "prompts length"], steps: int) -> ReadPrompt:
    return read_prompt(model, tokens, steps)


@nnx.jit(static_argnames=("steps", "stop", "mode"))
def _go_on(
    model: LanguageModel, read: ReadPrompt, mask: Bool[Array, "layers heads"], steps: int, stop: tuple, mode: HeadMode
) -> tuple[Array, Array]:
    edits = mask_heads(mask, mode, during="decode")
    return capture(continue_prompt, model, read, steps, stop=stop, edits=edits).output


@nnx.jit
def _most_read(model: LanguageModel, tokens: Int[Array, "prompts length"]) -> Int[Array, "layers prompts heads length"]:
    captured = capture(model, tokens, statistics={"layers.*.attention.statistics": ("maximum",)})
    count = model.config.layers
    return jnp.stack([captured.sites[f"layers.{layer}.attention.statistics"].argmax for layer in range(count)])


@nnx.jit(static_argnames=("layer",))
def _weights(model: LanguageModel, tokens: Int[Array, "1 length"], layer: int) -> Float[Array, "1 heads length length"]:
    site = f"layers.{layer}.attention.weights"
    return capture(model, tokens, sites=[site]).sites[site]


def read(reader: Reader, given: Sequence[Prompt]) -> list[ReadPrompt]:
    """Prompts read up to their last tokens, in batches."""
    tokens = np.stack([each.tokens for each in given])
    step = reader.part.at_once
    batches = [jnp.asarray(tokens[begin : begin + step]) for begin in range(0, len(tokens), step)]
    return [_read(reader.model, batch, reader.part.answer) for batch in batches]


def answers(
    reader: Reader,
    given: Sequence[Prompt],
    begun: list[ReadPrompt],
    mask: np.ndarray | None = None,
    mode: HeadMode = "zero",
) -> Answers:
    """What is said after prompts that have been read, without the heads of a mask in what is said.

    The step that reads the prompt's last token is the first without them, as in the released code.
    """
    config = reader.model.config
    switched = jnp.zeros((config.layers, config.heads), bool) if mask is None else jnp.asarray(mask)
    tokens = []
    for batch in begun:
        made, lengths = _go_on(reader.model, batch, switched, reader.part.answer, reader.stop, mode)
        tokens += [row[:count].tolist() for row, count in zip(np.asarray(made), np.asarray(lengths), strict=True)]
    said = [row[:-1] if row[-1] in reader.stop else row for row in tokens]
    texts = [reader.decode(row) for row in said]
    recalls = [recall(text, each.needle.sentence) for text, each in zip(texts, given, strict=True)]
    return Answers(said, texts, np.array(recalls))


def score(reader: Reader, given: Sequence[Prompt], said: Answers, rng: np.random.Generator) -> Scores:
    """Scores of every head, all rows at once: those of decoding, as the same tokens precede them."""
    found, step = [], reader.part.at_once
    for begin in range(0, len(given), step):
        batch = range(begin, min(begin + step, len(given)))
        tokens = np.zeros((len(batch), reader.part.length + reader.part.answer), np.int32)
        for row, each in enumerate(batch):
            text = np.concatenate([given[each].tokens, np.array(said.tokens[each], np.int32)])
            tokens[row, : len(text)] = text
        argmax = np.moveaxis(np.asarray(_most_read(reader.model, jnp.asarray(tokens))), 1, 0)
        for row, each in enumerate(batch):
            produced = np.array(said.tokens[each], np.int32)
            rows = slice(len(given[each].tokens) - 1, len(given[each].tokens) - 1 + len(produced))
            found.append(_scores(argmax[row][..., rows], tokens[row], produced, given[each].span, rng))
    return Scores(*(np.stack(each) for each in zip(*found, strict=True)))


def _scores(
    argmax: np.ndarray, context: np.ndarray, produced: np.ndarray, span: tuple[int, int], rng: np.random.Generator
) -> Scores:
    length = span[1] - span[0]
    other = int(rng.integers(span[0] - length + 1)) if length <= span[0] else span[1]
    hits = copied(argmax, context, produced, span)
    looks = copied(argmax, context, produced, span, token=False)
    away = copied(argmax, context, produced, (other, other + length))
    return Scores(
        retrieval_score(hits, argmax, length),
        retrieval_score(hits, argmax, length, "set"),
        retrieval_score(looks, argmax, length),
        retrieval_score(away, argmax, length),
    )


def measure(reader: Reader, seed: int, stop_if_asked: Callable[[], None]) -> Found:
    """Heads scored on some needles, and switched off on others."""
    part, rng = reader.part, np.random.default_rng(seed)
    runs: dict[str, tuple[list[Prompt], Answers]] = {}
    order = rng.permutation(len(reader.encode(" " + SCORED[0].sentence)))
    for name, needles, depths, options in (
        ("scored", SCORED, part.scored_depths, {}),
        ("absent", SCORED, part.scored_depths[:1], {"absent": True}),
        ("shuffled", SCORED[:1], part.scored_depths, {"order": order}),
    ):
        given = prompts(reader, needles, depths, **options)
        runs[name] = given, answers(reader, given, read(reader, given))
        log.info("%s: mean recall %.2f", name, runs[name][1].recalls.mean())
        stop_if_asked()
    scores = {name: score(reader, *each, rng) for name, each in runs.items()}
    shape = scores["scored"].times.shape[1:]
    mean = mean_score(scores["scored"].times, runs["scored"][1].recalls)
    best = np.argsort(-mean.ravel(), kind="stable")
    stop_if_asked()

    given = prompts(reader, HELD_OUT, part.held_out_depths)
    begun = read(reader, given)
    first = {count: _mask(best[:count], shape) for count in part.masked}
    held_out = answers(reader, given, begun)
    log.info("held out: mean recall %.2f", held_out.recalls.mean())
    without = {mode: {} for mode in MODES}
    invented = {}
    for mode in MODES:
        for count, mask in first.items():
            made = answers(reader, given, begun, mask, mode)
            without[mode][count], invented[f"{mode} {count}"] = made.recalls, made.texts
            log.info("without the best %d heads (%s): mean recall %.2f", count, mode, made.recalls.mean())
            stop_if_asked()
    outside = _mask(best[: part.outside], shape)
    drawn = {}
    for alike in (False, True):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), int(alike)), part.random)
        # Of the best heads' own layers, all but the best ten may be drawn: with sixty left out too few would be left.
        beside = None if alike else jnp.asarray(outside)
        masks = [random_heads(key, jnp.asarray(first[CLAIMED]), outside=beside, same_layers=alike) for key in keys]
        drawn[alike] = np.stack([answers(reader, given, begun, np.asarray(mask)).recalls for mask in masks])
        log.info("without ten random heads: mean recall %.2f", drawn[alike].mean())
        stop_if_asked()
    scored, absent, shuffled = (runs[name][1] for name in ("scored", "absent", "shuffled"))
    return Found(
        scored, held_out, absent, shuffled, scores["scored"], scores["absent"], scores["shuffled"],
        best, without, drawn[False], drawn[True], invented,
    )  # fmt: skip


def best_head_reads(reader: Reader, found: Found) -> Reading:
    """What the best head reads as it answers the prompt where it scores highest."""
    layer, head = divmod(int(found.best[0]), reader.model.config.heads)
    scores, recalls = found.scores.times[:, layer, head], found.scored.recalls
    which = max(range(len(scores)), key=lambda prompt: (scores[prompt], recalls[prompt]))
    given = prompts(reader, SCORED, reader.part.scored_depths)[which]
    told = f"Head {layer}.{head} where its score is {scores[which]:.2f}: {given.needle.question}"
    return head_reads(reader, given, found.scored.tokens[which], (layer, head), told)


def head_reads(reader: Reader, given: Prompt, said: list[int], head: tuple[int, int], told: str) -> Reading:
    """What a head, of that layer and number, reads in the rows that say an answer."""
    text = np.concatenate([given.tokens, np.array(said, np.int32)])
    weights = np.asarray(_weights(reader.model, jnp.asarray(text[None], jnp.int32), head[0]))[0, head[1]]
    words = [reader.decode([token]) for token in text.tolist()]
    begin = len(given.tokens)
    return Reading(told, words, words[begin:], weights[begin - 1 : len(text) - 1], given.span)


def _mask(heads: Int[np.ndarray, " chosen"], shape: tuple[int, ...]) -> Bool[np.ndarray, "layers heads"]:
    mask = np.zeros(shape, bool)
    mask.flat[heads] = True
    return mask
