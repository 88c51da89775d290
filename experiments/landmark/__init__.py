"""Landmark attention: a byte language model that retrieves blocks of what it has read.

    jattn run landmark        two arms, three seeds, then long text in chunks, with blocks retrieved, drawn, and none

The text is the reference of Python and the source of its standard library; no corpus of the paper's is to be had. The
paper's fine-tuned models and its pass keys are left out.

Read in this order: config, model, measure, claims, figures.
"""

import logging
from functools import partial

import jax
import numpy as np

from experiments.landmark import claims, figures
from experiments.landmark.config import ARMS, LANDMARK, PLAIN, PRESETS, Config
from experiments.landmark.measure import by_place, by_place_in_chunks, share_fetched, weights_by_block
from experiments.landmark.model import bits_by_place, build, landmark_losses, losses_of, windowed
from jattn.data.byte_windows import ByteText, byte_text
from jattn.data.text import python_library
from jattn.distributed import batch_mesh
from jattn.models.decoder import next_token_losses
from jattn.runs import Experiment, Paper, Run
from jattn.train import Fitted, create_state, fit
from jattn.train.curves import curves_through_training
from jattn.train.language import bits_per_byte, byte_batches, language_loss

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Train both arms on the same batches, read long windows of other documents, judge."""
    corpus = python_library()
    windows = {"validation_windows": config.validation_windows, "test_windows": config.test_windows}
    text = byte_text(corpus.documents, config.length, **windows)
    long_text = byte_text(corpus.documents, config.long_length, **windows)
    fitted = {arm: _train(run, config, text, arm) for arm in ARMS}
    state = create_state(
        partial(build, config, LANDMARK), config.optimiser(), jax.random.key(config.seed), config.seeds
    )
    untrained = Fitted(*state, config.seeds)
    log.info("measuring on %d windows of %d bytes", config.test_windows, config.long_length)
    short = {arm: by_place(fitted[arm], losses_of(config, arm), text.test) for arm in ARMS}
    long: dict[str, np.ndarray] = {}
    *fewer, most = config.top_k
    ways = {f"retrieved, {top_k}": (top_k, None) for top_k in fewer}
    ways |= {"retrieved": (most, None), "local": (0, None), "random": (most, 0), "other random": (most, config.layers)}
    for name, way in ways.items():
        run.stop_if_asked()
        long[name] = by_place_in_chunks(fitted[LANDMARK], config, long_text.test, *way)
        log.info("%s: %.4f bits per byte", name, long[name].mean())
    long[PLAIN] = by_place(fitted[PLAIN], next_token_losses, long_text.test)
    window = fitted[PLAIN].map(
        lambda model, windows: bits_by_place(next_token_losses, windowed(config, model), windows),
        shared=(long_text.test,),
    )
    long["plain, windowed"] = np.asarray(window, np.float64)
    before = {
        name: by_place_in_chunks(untrained, config, long_text.test, *ways[name]) for name in ("retrieved", "local")
    }
    before["short"] = by_place(untrained, partial(landmark_losses, config.block), text.test)
    claims.settle(run, short, long, before, config.length)
    read = weights_by_block(fitted[LANDMARK], config, text.test[:4])
    run.save_results(
        {
            "corpus": {"name": corpus.name, "digest": corpus.digest, "bytes to train on": len(text.train)},
            "bits per byte, short": {name: bits.mean(axis=1).tolist() for name, bits in short.items()},
            "bits per byte, long": {name: bits.mean(axis=1).tolist() for name, bits in long.items()},
            "share of finished blocks fetched at the end": {k: share_fetched(config, k) for k in config.top_k},
            "weight by blocks back, seeds by layers": read.tolist(),
        }
    )
    run.figure(
        "bits",
        curves_through_training(run, ARMS, "bits", "bits per byte"),
        "Bits per byte on validation windows: mean and range of seeds.",
    )
    run.figure("long", figures.bits_by_place(config, long), "Bits per byte by place in long windows of test documents.")
    run.figure("distance", figures.weight_by_distance(read), "How much is read of blocks by their distance.")


def _train(run: Run, config: Config, text: ByteText, arm: str) -> Fitted:
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
        evaluate=lambda model: {"bits": bits_per_byte(losses, model, text.validation)},
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
