"""TransNormer in small: a language model of bytes whose attention is linear, with decay.

    jattn run lightning                    five arms, three seeds, windows of 256 bytes; time against length

The arms are a softmax decoder with rotary positions, TransNormer, and TransNormer without its decay, its gate, or the
activation of queries and keys. The text is the reference of Python and the source of its standard library; no corpus
of the papers' is to be had.

Read in this order: config, model, measure, claims, figures.
"""

import logging
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from experiments.lightning import claims, figures
from experiments.lightning.config import ARMS, PRESETS, Config
from experiments.lightning.measure import decoding_bytes, seconds
from experiments.lightning.model import LEFT_OUT, bits_without, build, evaluate, forgetting_at_once, losses
from jattn.data.byte_windows import byte_text
from jattn.data.text import python_library
from jattn.distributed import batch_mesh
from jattn.runs import Experiment, Paper, Run
from jattn.train import Fitted, fit
from jattn.train.curves import curves_through_training
from jattn.train.language import byte_batches, language_loss

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Train every arm on one stream of windows, measure, judge the claims."""
    corpus = python_library()
    text = byte_text(
        corpus.documents,
        config.length,
        validation_windows=config.validation_windows,
        test_windows=config.test_windows,
    )
    fitted: dict[str, Fitted] = {}
    for arm in ARMS:
        fitted[arm] = fit(
            run,
            arm,
            build=partial(build, config, arm),
            loss=partial(language_loss, losses),
            optimiser=config.optimiser(),
            data=byte_batches(text, config.length, config.batch_size),
            key=jax.random.key(config.seed),
            schedule=config.schedule(),
            seeds=config.seeds,
            evaluate=evaluate,
            evaluate_on=(text.validation,),
            mesh=batch_mesh(config.devices),
        )
        run.stop_if_asked()
    log.info("measuring on %d windows of test documents", config.test_windows)
    ours = fitted["lightning"]
    forgetting = replace(ours, state=replace(ours.state, others=ours.map(forgetting_at_once)))
    tested = {arm: np.asarray(each.evaluate(text.test)["bits"], np.float64) for arm, each in fitted.items()}
    forgetful = np.asarray(forgetting.evaluate(text.test)["bits"], np.float64)
    left_out = {
        arm: np.asarray(ours.map(partial(bits_without, arm), shared=(text.test,)), np.float64)
        for arm, lacking in LEFT_OUT.items()
        if lacking
    }
    run.stop_if_asked()
    together, alone = seconds(config)
    carried = decoding_bytes(config)
    claims.settle(run, config, tested, forgetful, left_out, together, alone, carried)
    run.save_results(
        {
            "corpus": {"name": corpus.name, "digest": corpus.digest, "bytes to train on": len(text.train)},
            "bits per byte": {arm: each.tolist() for arm, each in tested.items()}
            | {"lightning, forgetting at once": forgetful.tolist()}
            | {f"lightning, tested as {arm}": each.tolist() for arm, each in left_out.items()},
            "CPU seconds": {
                kind: {name: dict(zip(map(str, config.timed_lengths), taken.T.tolist(), strict=True))
                       for name, taken in found.items()}
                for kind, found in (("a fixed number of tokens", together), ("one sequence", alone))
            },
            "bytes carried in decoding": {name: list(pair) for name, pair in carried.items()},
        }
    )  # fmt: skip
    run.figure(
        "bits",
        curves_through_training(run, ARMS, "bits", "bits per byte"),
        "Bits per byte on validation windows: mean and range of seeds.",
    )
    run.figure("time", figures.time_per_token(config, together, alone), "Attention alone, forward and backward.")


EXPERIMENT = Experiment(
    name="lightning",
    summary="Linear attention with decay against softmax attention in a language model of bytes; time against length.",
    paper=Paper(
        "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention",
        "Qin, Sun, Li, Shen, Sun, Zhong",
        "ICML 2024",
        "2405.17381",
    ),
    presets=PRESETS,
    run=run,
)
