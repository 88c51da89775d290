"""Landmark attention: a byte language model that retrieves blocks of what it has read.

    jattn run landmark        two arms, three seeds, then long text in chunks, with blocks retrieved, drawn, and none

The text is the reference of Python and the source of its standard library; no corpus of the paper's is to be had. For
pass keys the model that the text trained is tuned; `--parts pass_key` leaves out the rest. The paper's fine-tuned
models are left out.

Read in this order: config, model, measure, pass_key, claims, figures.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from experiments.landmark import claims, figures, pass_key
from experiments.landmark.config import ARMS, LANDMARK, PLAIN, PRESETS, Config
from experiments.landmark.measure import read_in_chunks, share_fetched, weights_by_block
from experiments.landmark.model import BY_LANDMARKS, NONE, bits_by_place, build, losses_of, windowed
from jattn.data.byte_windows import ByteText, byte_text
from jattn.data.corpus import Document
from jattn.data.text import python_library
from jattn.distributed import batch_mesh
from jattn.models.decoder import next_token_losses
from jattn.runs import Experiment, Paper, Run
from jattn.train import Fitted, Mapped, create_state, fit, mapped
from jattn.train.curves import curves_through_training
from jattn.train.language import bits_per_byte, byte_batches, language_loss

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Train the landmark model, then part after part."""
    corpus = python_library()
    windows = {"validation_windows": config.validation_windows, "test_windows": config.test_windows}
    text = byte_text(corpus.documents, config.length, **windows)
    state = create_state(
        partial(build, config, LANDMARK), config.optimiser(), jax.random.key(config.seed), config.seeds
    )
    untrained = Fitted(*state, config.seeds)
    trained = _train(run, config, text, LANDMARK, untrained)
    in_chunks = {top_k: mapped(partial(read_in_chunks, config, top_k)) for top_k in config.top_k}
    results = {"corpus": {"name": corpus.name, "digest": corpus.digest, "bytes to train on": len(text.train)}}
    if "text" in config.parts:
        long_windows = byte_text(corpus.documents, config.long_length, **windows).test
        results |= _text(run, config, text, long_windows, untrained, trained, in_chunks)
        run.save_results(results)
    if "pass_key" in config.parts:
        results |= _pass_key(run, config, corpus.documents, text, trained, in_chunks[config.top_k[-1]])
        run.save_results(results)


def _text(
    run: Run,
    config: Config,
    text: ByteText,
    long_windows: Int[Array, "windows length"],
    untrained: Fitted,
    trained: Fitted,
    in_chunks: dict[int, Mapped],
) -> dict[str, Any]:
    """Train the plain arm on the same batches, read long windows of other documents, judge."""
    fitted = {LANDMARK: trained, PLAIN: _train(run, config, text, PLAIN, untrained)}
    log.info("measuring on %d windows of %d bytes", config.test_windows, config.long_length)
    short = {arm: fitted[arm].evaluate(text.test) for arm in ARMS}
    short["before training"] = replace(untrained, evaluation=trained.evaluation).evaluate(text.test)
    short = {name: np.asarray(each["bits"], np.float64) for name, each in short.items()}

    def bits(of: Fitted, top_k: int, way: int) -> np.ndarray:
        run.stop_if_asked()
        nats, _ = in_chunks[top_k](of, shared=(long_windows, way))
        return np.asarray(nats, np.float64).mean(axis=1) / np.log(2)

    *fewer, most = config.top_k
    long = {f"retrieved, {top_k}": bits(trained, top_k, BY_LANDMARKS) for top_k in fewer}
    ways = {"retrieved": BY_LANDMARKS, "local": NONE, "random": 0, "other random": config.layers}
    long |= {name: bits(trained, most, way) for name, way in ways.items()}
    plain = {PLAIN: lambda model: model, "plain, windowed": partial(windowed, config)}
    for name, change in plain.items():
        found = fitted[PLAIN].map(partial(bits_by_place, next_token_losses, change), shared=(long_windows,))
        long[name] = np.asarray(found, np.float64)
    for name, each in long.items():
        log.info("%s: %.4f bits per byte", name, each.mean())
    before = {name: bits(untrained, most, ways[name]) for name in ("retrieved", "local")}
    claims.settle(run, short, long, before, config.length)
    read = weights_by_block(trained, config, text.test[:4])
    run.figure(
        "bits",
        curves_through_training(run, ARMS, "bits", "bits per byte"),
        "Bits per byte on validation windows: mean and range of seeds.",
    )
    run.figure("long", figures.bits_by_place(config, long), "Bits per byte by place in long windows of test documents.")
    run.figure("distance", figures.weight_by_distance(read), "How much is read of blocks by their distance.")
    return {
        "bits per byte, short": {name: each.tolist() for name, each in short.items()},
        "bits per byte, long": {name: each.mean(axis=1).tolist() for name, each in long.items()},
        "share of finished blocks fetched at the end": {k: share_fetched(config, k) for k in config.top_k},
        "weight by blocks back, seeds by layers": read.tolist(),
    }


def _pass_key(
    run: Run, config: Config, documents: Sequence[Document], text: ByteText, trained: Fitted, in_chunks: Mapped
) -> dict[str, Any]:
    """Tune on windows with pass keys, ask for those in windows of other documents, judge."""
    settings = config.pass_key
    tuned = pass_key.tune(run, config, text.train, trained)
    right: dict[str, np.ndarray] = {}
    for length in settings.lengths:
        found = byte_text(documents, length, validation_windows=1, test_windows=settings.windows).test
        windows = pass_key.tested_windows(config, found)
        measured = {f"retrieved, {length} bytes": (tuned, BY_LANDMARKS)}
        if length == settings.lengths[-1]:
            measured |= {"local": (tuned, NONE), "random": (tuned, 0), "before tuning": (trained, BY_LANDMARKS)}
        for name, (fitted, way) in measured.items():
            run.stop_if_asked()
            _, likeliest = in_chunks(fitted, shared=(windows, way))
            right[name] = np.asarray(likeliest)[..., -pass_key.DIGITS :]
            log.info("%s: %.3f of keys, %.3f of digits", name, right[name].all(axis=-1).mean(), right[name].mean())
    claims.settle_pass_key(run, right, settings.lengths[-1])
    return {
        "share of keys read off": {name: each.all(axis=-1).mean(axis=1).tolist() for name, each in right.items()},
        "share of digits": {name: each.mean(axis=(1, 2)).tolist() for name, each in right.items()},
        "keys read off by place of the note": right[f"retrieved, {settings.lengths[-1]} bytes"].all(axis=-1).tolist(),
    }


def _train(run: Run, config: Config, text: ByteText, arm: str, untrained: Fitted) -> Fitted:
    """From what the landmark model was before training: the arms have the same parameters."""
    losses = losses_of(config, arm)
    fitted = fit(
        run,
        arm,
        build=partial(build, config, arm),
        loss=partial(language_loss, losses),
        optimiser=config.optimiser(),
        data=byte_batches(text, config.length, config.batch_size),
        key=jax.random.key(config.seed),
        schedule=config.schedule(),
        seeds=config.seeds,
        evaluate=lambda model, windows: {"bits": bits_per_byte(losses, model, windows)},
        evaluate_on=(text.validation,),
        parameters=untrained.state.parameters,
        mesh=batch_mesh(config.devices),
    )
    run.stop_if_asked()
    return fitted


EXPERIMENT = Experiment(
    name="landmark",
    summary="A byte language model reads long text in chunks and retrieves blocks by landmarks.",
    paper=Paper(
        "Landmark Attention: Random-Access Infinite Context Length for Transformers",
        "Mohtashami, Jaggi",
        "NeurIPS 2023",
        "2305.16300",
    ),
    presets=PRESETS,
    run=run,
)
