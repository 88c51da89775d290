"""The Routing Transformer in small: a language model of bytes whose heads read clusters of their tokens.

    jattn run routing_transformer                          four arms, three seeds, windows of 1,024 bytes
    jattn run routing_transformer --causal-routing         the strictly causal form in place of the published one

The arms are one decoder with local attention, with random clusters or routing heads in its last layer, and with
full attention. The text is the reference of Python and the source of its standard library; no corpus of the paper's
is to be had.

Read in this order: config, model, measure, claims, figures.
"""

import logging
from functools import partial
from typing import Any

import jax

from experiments.routing_transformer import claims, figures
from experiments.routing_transformer.config import ARMS, PRESETS, Config
from experiments.routing_transformer.measure import bits, clusters, look
from experiments.routing_transformer.model import build, evaluate, loss
from jattn.data.byte_windows import byte_text
from jattn.data.text import python_library
from jattn.distributed import batch_mesh
from jattn.runs import Experiment, Paper, Run
from jattn.train import Fitted, create_state, fit
from jattn.train.curves import curves_through_training
from jattn.train.language import byte_batches

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Train every arm on one stream of windows, measure, judge the claims."""
    corpus = python_library()
    text = byte_text(
        [d for d in corpus.documents if config.corpus == "python_library" or d.name.startswith("library/")],
        config.length,
        validation_windows=config.validation_windows,
        test_windows=config.test_windows,
    )
    key, optimiser = jax.random.key(config.seed), config.optimiser()
    fitted: dict[str, Fitted] = {}
    for arm in ARMS:
        fitted[arm] = fit(
            run,
            arm,
            build=partial(build, config, arm),
            loss=partial(loss, config.commitment),
            optimiser=optimiser,
            data=byte_batches(text, config.length, config.batch_size),
            key=key,
            schedule=config.schedule(),
            seeds=config.seeds,
            evaluate=partial(evaluate, text.validation),
            mesh=batch_mesh(config.devices),
        )
        run.stop_if_asked()
    log.info("measuring on %d windows of test documents", config.test_windows)
    tested = {arm: bits(each, text.test) for arm, each in fitted.items()}
    random_at_test = bits(fitted["routing"], text.test, random=True)
    run.stop_if_asked()
    probe = text.test[: config.probe_windows]
    looks = {arm: look(fitted[arm], config, probe) for arm in ("local", "routing")}
    untrained = Fitted(*create_state(partial(build, config, "routing"), optimiser, key, config.seeds), config.seeds)
    before, after = (clusters(each, config, probe) for each in (untrained, fitted["routing"]))
    claims.settle(run, config, tested, random_at_test, looks, before, after)
    run.save_results(
        {
            "corpus": {
                "name": config.corpus,
                "digest of python_library": corpus.digest,
                "bytes to train on": len(text.train),
            },
            "bits per byte": {arm: each.tolist() for arm, each in tested.items()}
            | {"routing, clusters random at test": random_at_test.tolist()},
            "divergence": {
                arm: {"among local heads": each.among.tolist(), "across": each.across.tolist()}
                for arm, each in looks.items()
            },
            "clusters before training": _plain(before),
            "clusters after training": _plain(after),
        }
    )
    run.figure(
        "bits",
        curves_through_training(run, ARMS, "bits", "bits per byte"),
        "Bits per byte on validation windows: mean and range of seeds.",
    )
    run.figure(
        "distance",
        figures.weight_by_distance(config, looks["routing"]),
        "How far back heads of the arm with routing look. The line is as far as a local head can.",
    )


def _plain(found: Any) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in vars(found).items()}


EXPERIMENT = Experiment(
    name="routing_transformer",
    summary="Attention within clusters of tokens, found by online k-means, in a language model of bytes.",
    paper=Paper(
        "Efficient Content-Based Sparse Attention with Routing Transformers",
        "Roy, Saffar, Vaswani, Grangier",
        "TACL 2021",
        "2003.05997",
    ),
    presets=PRESETS,
    run=run,
)
