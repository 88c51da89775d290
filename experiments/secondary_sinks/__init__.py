"""Secondary attention sinks: tokens that a feed-forward layer gives the first token's direction, for some layers.

    jattn weights fetch smollm2-135m
    jattn data fetch moby_dick state_of_the_union
    jattn run secondary_sinks

Three parts, on SmolLM2-135M-Instruct: its sinks as they are and rescaled (`pretrained`), sinks that are put in
(`planted`), and the primary sink taken away (`removal`). The smoke preset has a small decoder whose weights are set by
hand instead, so that its sinks are known.

Read in this order: config, detector, trace, texts, survey, the parts, claims, figures.
"""

import logging
from collections import Counter
from typing import Any

import numpy as np

from experiments.secondary_sinks import claims, constructed, figures, planted, pretrained, removal
from experiments.secondary_sinks.config import PRESETS, Config
from experiments.secondary_sinks.survey import Survey, all_levels, survey
from experiments.secondary_sinks.texts import QUESTIONS, Texts, make_texts
from experiments.secondary_sinks.trace import Reader, trace
from jattn.pretrained.load import load
from jattn.runs import Experiment, Paper, Run

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Part after part."""
    reader, texts, decode = _read(config, run)
    known = survey(texts, trace(reader, texts.tokens), config.unread)
    log.info("%d sinks in %d texts", sum(len(each.sinks) for each in known.found), len(known.found))
    results = {}
    for name, part in (("pretrained", _pretrained), ("planted", _planted), ("removal", _removal)):
        if name in config.parts:
            rng = np.random.default_rng([config.seed, len(results)])
            results[name] = part(config, run, reader, known, decode, rng)
            run.save_results(results)


def _read(config: Config, run: Run) -> tuple[Reader, Texts, Any]:
    """The model, the texts, and what tells a token's name."""
    if config.model is None:
        count = len(QUESTIONS) * config.of_a_kind
        tokens = constructed.texts(count, config.length, config.seed)
        texts = Texts(tokens, np.ones(count, int), ("random",) * count)
        return Reader(constructed.build(config.seed), config.at_once, run.stop_if_asked), texts, str
    model, tokenizer = load(config.model)
    texts = make_texts(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids, config.of_a_kind, config.length, config.seed
    )
    return Reader(model, config.at_once, run.stop_if_asked), texts, lambda token: tokenizer.decode([token])


def _pretrained(config: Config, run: Run, reader: Reader, known: Survey, decode: Any, rng: np.random.Generator) -> Any:
    shuffled = pretrained.permuted(reader, known, rng)
    read, stages = pretrained.read(known), pretrained.stages(reader, known)
    steered = pretrained.steer(reader, known, config, rng)
    claims.settle_pretrained(run, known.found, shuffled.found, read, stages, steered)
    levels, (norms, scores) = all_levels(known.found), _by_block(known)
    run.figure("blocks", figures.by_block(norms, scores), "Norms and weights, means over tokens of each kind.")
    run.figure(
        "levels", figures.histogram(levels, reader.model.config.layers), "Where sinks start and how long they live."
    )
    if steered is not None:
        run.figure("steered", figures.sweeps(steered), "Sinks, with what the feed-forward layer adds to them rescaled.")
    kinds = dict.fromkeys(known.texts.kinds)
    of_kind = {
        kind: [len(found.sinks) for found, each in zip(known.found, known.texts.kinds, strict=True) if each == kind]
        for kind in kinds
    }
    tokens = Counter(
        decode(int(row[sink.position]))
        for row, found in zip(known.texts.tokens, known.found, strict=True)
        for sink in found.sinks
    )
    return {
        "windows": {str(each): count for each, count in Counter(str(found.windows) for found in known.found).items()},
        "levels": {str(each): count for each, count in levels.most_common()},
        "kinds of sinks": Counter(sink.kind for found in known.found for sink in found.sinks),
        "sinks by the rule of one window": pretrained.one_window(known),
        "blocks in another order": {
            "windows": Counter(str(found.windows) for found in shuffled.found),
            "levels": {str(each): count for each, count in all_levels(shuffled.found).most_common(10)},
            "sinks": sum(len(found.sinks) for found in shuffled.found),
            "scores over those of tokens of the same ids": pretrained.read(shuffled).born.tolist(),
        },
        "sinks of each text": of_kind,
        "texts with none": {kind: sum(count == 0 for count in counts) for kind, counts in of_kind.items()},
        "tokens of sinks": dict(tokens.most_common(20)),
        "norms": {name: each.tolist() for name, each in norms.items()},
        "scores": {name: each.tolist() for name, each in scores.items()},
        "stages": None if stages is None else {
            "sinks": {name: float(each.mean()) for name, each in stages.sinks.items()}, "others": stages.others
        },
        "steered": None if steered is None else {
            "kinds": [known.texts.kinds[text] for text in steered.texts],
            **{name: np.asarray(each).tolist() for name, each in steered._asdict().items()},
        },
    }  # fmt: skip


def _planted(config: Config, run: Run, reader: Reader, known: Survey, decode: Any, rng: np.random.Generator) -> Any:
    found = planted.plant(reader, known, config, rng)
    claims.settle_planted(run, found)
    if found is None:
        return None
    run.figure("planted", figures.plantings(found), "Sinks planted in each text.")
    return {name: each.tolist() for name, each in found._asdict().items()}


def _removal(config: Config, run: Run, reader: Reader, known: Survey, decode: Any, rng: np.random.Generator) -> Any:
    removed = removal.remove(reader, known, config, rng)
    claims.settle_removal(run, removed)
    return None if removed is None else {name: each.tolist() for name, each in removed._asdict().items()}


def _by_block(known: Survey) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean norm and score by block of the primary sink, of sinks, of tokens of their ids, and of all others."""
    looked, marked, tokens = known.looked_at(), known.is_sink(), known.texts.tokens
    alike = np.isin(tokens, tokens[marked]) & ~marked
    first = np.zeros_like(marked)
    first[np.arange(len(first)), [found.primary for found in known.found]] = True
    groups = {
        "primary sink": first,
        "sinks": looked & marked,
        "same ids, no sinks": looked & alike,
        "other tokens": looked & ~marked & ~alike,
    }
    norms, scores = (
        {name: np.moveaxis(values, 1, 2)[group].mean(axis=0) for name, group in groups.items() if group.any()}
        for values in (known.trace.norms, known.trace.scores)
    )
    return norms, scores


EXPERIMENT = Experiment(
    name="secondary_sinks",
    summary="Attention sinks beside the first token, found, rescaled, planted and removed in a small published model.",
    paper=Paper(
        "On the Existence and Behaviour of Secondary Attention Sinks",
        "Wong, Zhang, Mahon, Luk, Isopoussu, Zhao",
        "preprint, 2025",
        "2512.22213",
    ),
    presets=PRESETS,
    run=run,
)
