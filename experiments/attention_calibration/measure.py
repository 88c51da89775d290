"""What is measured: sinks, what each head alone does to some prompts, and what all chosen heads do to others."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from experiments.attention_calibration.config import Config
from experiments.attention_calibration.sweep import (
    Stack,
    calibrate_alone,
    calibrate_sinks,
    calibrate_together,
    find_sinks,
    read,
)
from experiments.attention_calibration.texts import Prompts, Task
from jattn.interpret import CalibrateColumns, CalibrateSinks

log = logging.getLogger("jattn")


class Found(NamedTuple):
    """What one run measures. A margin is the right answer's logit less the other's, in nats.

    Attributes:
      scores: mean weights on keys, of the prompts that heads are chosen by.
      sinks: which of them are sinks.
      unchanged, alone: margins of these prompts, as they are, and with each head calibrated alone.
      has_sinks: of the heads that may be chosen, those that have a sink in some prompt.
      kept: heads whose calibration alone answers more prompts rightly.
      vanilla, kept_margins: margins of the test, as it is, and with the heads kept.
      first_too: with position 0 calibrated as well; `amplified`: with weights on sinks enlarged.
      random_heads: of as many heads drawn among those that have sinks; `random_columns`: of as many other keys.
      shuffled: with the heads that are chosen where labels are permuted.
      kept_shuffled: how many those are.
    """

    scores: Float[np.ndarray, "layers prompts heads length"]
    sinks: Bool[np.ndarray, "layers prompts heads length"]
    unchanged: Float[np.ndarray, " prompts"]
    alone: Float[np.ndarray, "some_layers heads prompts"]
    has_sinks: Bool[np.ndarray, "some_layers heads"]
    kept: Bool[np.ndarray, "some_layers heads"]
    vanilla: Float[np.ndarray, " tested"]
    kept_margins: Float[np.ndarray, " tested"]
    first_too: Float[np.ndarray, " tested"]
    amplified: Float[np.ndarray, " tested"]
    random_heads: Float[np.ndarray, "sets tested"]
    random_columns: Float[np.ndarray, "draws tested"]
    shuffled: Float[np.ndarray, "shuffles tested"]
    kept_shuffled: list[int]


def measure(stack: Stack, task: Task, config: Config, stop_if_asked: Callable[[], None]) -> Found:
    """Heads chosen on some prompts, and calibrated together on others."""
    rng = np.random.default_rng(config.seed)
    first, behind = config.layers
    reading = read(stack, task.calibration.tokens, config.layers)
    sinks = find_sinks(reading.scores, config.threshold)
    unchanged = _margins(reading.preferences, task.calibration)
    log.info("right on the prompts that heads are chosen by: %.2f", (unchanged > 0).mean())
    has_sinks = np.any(sinks[first:behind], axis=(1, 3))
    log.info("%d heads have sinks, in %d prompts altogether", has_sinks.sum(), sinks[first:behind].any(axis=-1).sum())
    stop_if_asked()
    preferences = calibrate_alone(stack, reading, config.threshold, config.factor)
    kept = choose(preferences, reading.preferences, task.calibration.labels)
    log.info("%d heads are kept", kept.sum())
    stop_if_asked()

    tested = read(stack, task.test.tokens, (first, first + 1))
    layers, prompts, heads, _ = tested.scores.shape

    def spread(mask: Bool[np.ndarray, "some_layers heads"]) -> Bool[np.ndarray, "layers tested heads"]:
        every = np.zeros((layers, heads), bool)
        every[first:behind] = mask
        return np.broadcast_to(every[:, None], (layers, prompts, heads))

    def margins(change: CalibrateSinks | CalibrateColumns, name: str) -> Float[np.ndarray, " tested"]:
        stop_if_asked()
        found = _margins(calibrate_together(stack, tested, change), task.test)
        log.info("%s: right %.3f, mean margin %.3f", name, (found > 0).mean(), found.mean())
        return found

    def on_sinks(mask: np.ndarray, name: str, factor: float = config.factor, spare: int = 1) -> np.ndarray:
        return margins(calibrate_sinks(spread(mask), config.threshold, factor, spare), name)

    def on_others(mask: np.ndarray, name: str) -> np.ndarray:
        drawn = draw_columns(find_sinks(tested.scores, config.threshold) & spread(mask)[..., None], rng)
        return margins(CalibrateColumns(jnp.asarray(drawn), jnp.full(layers, config.factor)), name)

    vanilla = _margins(tested.preferences, task.test)
    log.info("test, unchanged: right %.3f, mean margin %.3f", (vanilla > 0).mean(), vanilla.mean())
    orders = [rng.permutation(task.calibration.labels) for _ in range(config.shuffles)]
    chance = [choose(preferences, reading.preferences, labels) for labels in orders]
    return Found(
        reading.scores,
        sinks,
        unchanged,
        _margins(preferences, task.calibration),
        has_sinks,
        kept,
        vanilla,
        on_sinks(kept, "heads kept"),
        on_sinks(kept, "the first token too", spare=0),
        on_sinks(kept, "sinks amplified", config.amplified),
        np.stack([on_sinks(draw_heads(has_sinks, int(kept.sum()), rng), "random heads") for _ in range(config.random)]),
        np.stack([on_others(kept, "random keys") for _ in range(config.columns)]),
        np.stack([on_sinks(each, "labels permuted") for each in chance]),
        [int(each.sum()) for each in chance],
    )


def choose(
    alone: Float[np.ndarray, "some_layers heads prompts"],
    unchanged: Float[np.ndarray, " prompts"],
    labels: Bool[np.ndarray, " prompts"],
) -> Bool[np.ndarray, "some_layers heads"]:
    """Heads whose calibration alone answers strictly more prompts rightly; of preferences for the second answer."""
    return ((alone > 0) == labels).sum(axis=-1) > ((unchanged > 0) == labels).sum()


def draw_heads(
    among: Bool[np.ndarray, "some_layers heads"], count: int, rng: np.random.Generator
) -> Bool[np.ndarray, "some_layers heads"]:
    """So many heads at random, among some."""
    mask = np.zeros_like(among)
    mask.flat[rng.choice(np.flatnonzero(among), count, replace=False)] = True
    return mask


def draw_columns(sinks: Bool[np.ndarray, "*any length"], rng: np.random.Generator) -> Bool[np.ndarray, "*any length"]:
    """As many other keys as there are sinks, in every row, but for the first; sinks themselves where others run out."""
    draws = rng.random(sinks.shape) + sinks
    draws[..., 0] = np.inf
    ranks = draws.argsort(axis=-1).argsort(axis=-1)
    return ranks < sinks.sum(axis=-1, keepdims=True)


def frequent_sinks(
    found: Found, tokens: np.ndarray, decode: Callable[[list[int]], str], many: int = 12
) -> dict[str, int]:
    """The tokens that are sinks most often, over layers, heads and prompts."""
    prompts, places = np.nonzero(found.sinks.sum(axis=(0, 2)))
    counts: Counter[str] = Counter()
    for prompt, place in zip(prompts, places, strict=True):
        counts[decode([int(tokens[prompt, place])])] += int(found.sinks[:, prompt, :, place].sum())
    return dict(counts.most_common(many))


def summary(found: Found, config: Config) -> dict[str, Any]:
    """The numbers behind claims and figures."""
    arms = {
        "unchanged": found.vanilla[None],
        "heads kept": found.kept_margins[None],
        "the first token too": found.first_too[None],
        "sinks amplified": found.amplified[None],
        "random heads": found.random_heads,
        "random keys": found.random_columns,
        "labels permuted": found.shuffled,
    }
    relative = find_sinks(found.scores, config.relative / config.length)
    late = found.sinks[..., -config.length // 4 :].sum() / max(found.sinks.sum(), 1)
    change = found.alone.mean(axis=-1) - found.unchanged.mean()
    return {
        "accuracy on the prompts that heads are chosen by": float((found.unchanged > 0).mean()),
        "sinks per head and prompt, by layer": found.sinks.sum(axis=-1).mean(axis=(1, 2)).tolist(),
        "the same by the relative rule": relative.sum(axis=-1).mean(axis=(1, 2)).tolist(),
        "share of sinks in the last quarter of the prompt": float(late),
        "heads that have sinks": int(found.has_sinks.sum()),
        "heads kept": [f"{layer + config.layers[0]}.{head}" for layer, head in np.argwhere(found.kept)],
        "heads kept with labels permuted": found.kept_shuffled,
        "change of the margin with one head calibrated": change.tolist(),
        "accuracy of each": (found.alone > 0).mean(axis=-1).tolist(),
        "test": {
            name: {"accuracy": (each > 0).mean(axis=-1).tolist(), "margin": each.mean(axis=-1).tolist()}
            for name, each in arms.items()
        },
    }


def _margins(preferences: Float[np.ndarray, "*any prompts"], prompts: Prompts) -> Float[np.ndarray, "*any prompts"]:
    return np.where(prompts.labels, preferences, -preferences)
