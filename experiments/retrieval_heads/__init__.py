"""Retrieval heads: the few heads that copy from a long context into the answer.

    jattn weights fetch smollm2-135m
    jattn data fetch moby_dick state_of_the_union
    jattn run retrieval_heads

Three parts: a network whose weights are set by hand (`constructed`), small decoders that learn to copy (`trained`), and
SmolLM2-135M-Instruct, asked for sentences hidden in a novel and in an address to Congress (`pretrained`). Heads are
switched off in decoding alone, as in the released code, which makes them read everything alike (mode "uniform"); the
claims are on heads whose output is 0 (mode "zero").

Read in this order: config, needles, score, the parts, claims, reading, figures.
"""

import logging
from typing import Any

import numpy as np

from experiments.retrieval_heads import claims, constructed, figures, pretrained, reading, trained
from experiments.retrieval_heads.config import CLAIMED, PRESETS, Config
from experiments.retrieval_heads.score import mean_score
from jattn.interpret import head_grid
from jattn.pretrained.load import load
from jattn.runs import Experiment, Paper, Run

log = logging.getLogger("jattn")

PROBLEMS = 5
"""Of the network whose weights are set by hand."""


def run(config: Config, run: Run) -> None:
    """Part after part."""
    results = {}
    for name, part in (("constructed", _constructed), ("trained", _trained), ("pretrained", _pretrained)):
        if name in config.parts:
            run.stop_if_asked()
            results[name] = part(config, run)
            run.save_results(results)


def _constructed(config: Config, run: Run) -> Any:
    rng = np.random.default_rng(config.seed)
    scores = np.array([constructed.scores(constructed.problem(rng)) for _ in range(PROBLEMS)])
    claims.settle_constructed(run, scores)
    return dict(zip(constructed.HEADS, scores[:, 0].T.tolist(), strict=True))


def _trained(config: Config, run: Run) -> Any:
    after, before, reads = trained.measure(config, run)
    claims.settle_trained(run, after, before)
    best = max(after, key=lambda each: each.scores.max())
    caption = "Retrieval score of every head of the small decoder that has the best one."
    run.figure("copying_scores", head_grid(best.scores, label="retrieval score"), caption)
    run.view("copying", reading.page(reads), "What the best head of the small decoders reads as it answers one text.")
    return {
        name: [{"scores": each.scores.tolist(), "accuracy": each.accuracy} for each in found]
        for name, found in (("after training", after), ("before", before))
    }


def _pretrained(config: Config, run: Run) -> Any:
    model, tokenizer = load(config.pretrained.model)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    stop = (encode(pretrained.END_OF_TURN)[-1], encode("\n")[-1])
    reader = pretrained.Reader(model, encode, lambda tokens: tokenizer.decode(list(tokens)), stop, config.pretrained)
    found = pretrained.measure(reader, config.seed, run.stop_if_asked)
    claims.settle_pretrained(run, found)
    mean = mean_score(found.scores.times, found.scored.recalls)
    heads = mean.shape[1]
    run.figure("scores", head_grid(mean, label="retrieval score"), "Mean retrieval score of every head.")
    caption = "What the best head reads around the needle as it answers, on the prompt where it scores highest."
    run.view("reads", reading.page(pretrained.best_head_reads(reader, found)), caption)
    drawn = {"of any layer": found.without_random, "of the same layers": found.without_alike}
    caption = "Recall of needles that scored no head, with heads switched off in decoding."
    run.figure("masks", figures.recalls(found.held_out.recalls, found.without, drawn), caption)
    return {
        "recalls": {
            name: getattr(found, name).recalls.tolist() for name in ("scored", "held_out", "absent", "shuffled")
        },
        "answers": {"all heads": found.held_out.texts, **found.invented},
        "best heads": {f"{head // heads}.{head % heads}": float(mean.flat[head]) for head in found.best[:20].tolist()},
        "set form, largest difference": float(np.abs(found.scores.times - found.scores.set_form).max()),
        "best ten heads where tokens are shuffled": found.shuffled_scores.times.reshape(
            len(found.shuffled.recalls), -1
        )[:, found.best[:CLAIMED]]
        .mean(axis=0)
        .tolist(),
        "recalls without the best": {
            mode: {str(count): each.mean() for count, each in counts.items()} for mode, counts in found.without.items()
        },
        "recalls without random heads": {name: each.mean(axis=1).tolist() for name, each in drawn.items()},
    }


EXPERIMENT = Experiment(
    name="retrieval_heads",
    summary="Heads that copy a needle into the answer, found and switched off in a small published model.",
    paper=Paper(
        "Retrieval Head Mechanistically Explains Long-Context Factuality",
        "Wu, Wang, Xiao, Peng, Fu",
        "ICLR 2025",
        "2404.15574",
    ),
    presets=PRESETS,
    run=run,
)
