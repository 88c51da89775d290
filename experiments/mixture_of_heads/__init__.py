"""Mixture-of-head attention: byte language models, and models of images, whose tokens run some of the heads.

    jattn run mixture_of_heads        six arms, three seeds, then a trained multi-head model made into a mixture;
                                      and two arms of vision transformers on handwritten digits, five seeds

Read in this order: config, model, measure, images, claims, figures. How fast the sparse path is, `jattn bench` tells;
models of diffusion, which the paper has too, are left out.
"""

import logging
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.mixture_of_heads import claims, figures
from experiments.mixture_of_heads.config import MULTI_HEAD, PRESETS, Config
from experiments.mixture_of_heads.images import run_images
from experiments.mixture_of_heads.measure import byte_classes, choices, clearness, use_of_heads
from experiments.mixture_of_heads.model import bits, bits_without_heads, build, convert, evaluate, loss
from jattn.data.byte_windows import ByteText, byte_text
from jattn.data.text import python_library
from jattn.distributed import batch_mesh
from jattn.runs import Experiment, Paper, Run
from jattn.train import Fitted, create_state, fit
from jattn.train.curves import curves_through_training
from jattn.train.language import byte_batches

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Train every arm on the same batches, go on from the multi-head model in two ways, measure, judge."""
    corpus = python_library()
    text = byte_text(
        corpus.documents,
        config.length,
        validation_windows=config.validation_windows,
        test_windows=config.test_windows,
    )
    fitted = {arm: _train(run, config, text, arm) for arm in config.arms}
    whole = fitted[MULTI_HEAD]
    fitted["untuned"] = _converted(config, whole)
    fitted["converted"] = _tune(run, config, text, "converted", fitted["untuned"])
    fitted["continued"] = _tune(run, config, text, "continued", whole)
    run.stop_if_asked()
    log.info("measuring on %d windows of test documents", config.test_windows)
    tested = {name: each.map(bits, shared=(text.test,)) for name, each in fitted.items()}
    keys = jax.random.split(jax.random.key(config.seed + 1), config.seeds)
    for name, keep in (("without_a_quarter", 3 * config.heads // 4), ("without_a_half", config.heads // 2)):
        tested[name] = whole.map(partial(bits_without_heads, keep), keys, shared=(text.test,))
    tested = {name: np.asarray(values, np.float64) for name, values in tested.items()}
    classes = byte_classes(np.asarray(text.test)[:, :-1])
    shuffled = np.random.default_rng(config.seed).permutation(classes.reshape(-1)).reshape(classes.shape)
    half, unbalanced = (
        np.asarray(fitted[name].map(choices, shared=(text.test,))) for name in ("mixture_50", "unbalanced_50")
    )
    use, by_chance = use_of_heads(half, classes), use_of_heads(half, shuffled)
    claims.settle(run, tested, use, by_chance, use_of_heads(unbalanced, classes))
    told_apart = run_images(run, config)
    claims.settle_images(run, told_apart)
    run.save_results(
        {
            "corpus": {"name": corpus.name, "digest": corpus.digest, "bytes to train on": len(text.train)},
            "bits per byte": {name: values.tolist() for name, values in tested.items()},
            "share of test images told apart": {name: values.tolist() for name, values in told_apart.items()},
            "Cramér's V of head and class, seeds by layers": clearness(use).tolist(),
        }
    )
    _draw(run, config, tested, use)


def _train(run: Run, config: Config, text: ByteText, arm: str) -> Fitted:
    return _fit(run, config, text, arm, lambda rngs: build(config, arm, rngs), config.steps, config.learning_rate)


def _tune(run: Run, config: Config, text: ByteText, name: str, start: Fitted) -> Fitted:
    """Go on from a trained model: the paper's second stage, at a third of the first one's learning rate."""

    def again(rngs: nnx.Rngs) -> nnx.Module:
        model = build(config, MULTI_HEAD, rngs)
        return convert(model, config.mixtures["mixture_75"]) if name == "converted" else model

    return _fit(run, config, text, name, again, config.tuning_steps, config.learning_rate / 3, start)


def _fit(
    run: Run,
    config: Config,
    text: ByteText,
    name: str,
    build: Any,
    steps: int,
    rate: float,
    start: Fitted | None = None,
) -> Fitted:
    fitted = fit(
        run,
        name,
        build=build,
        loss=partial(loss, 0.0 if name == "unbalanced_50" else config.balance_weight),
        optimiser=config.optimiser(rate, steps),
        data=byte_batches(text, config.length, config.batch_size),
        key=jax.random.fold_in(jax.random.key(config.seed), int(start is not None)),
        schedule=config.schedule(steps),
        seeds=config.seeds,
        evaluate=partial(evaluate, text.validation),
        mesh=batch_mesh(config.devices),
        parameters=None if start is None else start.state.parameters,
    )
    run.stop_if_asked()
    return fitted


def _converted(config: Config, whole: Fitted) -> Fitted:
    """The multi-head models as mixtures, before any tuning."""
    mixture = config.mixtures["mixture_75"]
    graph, state = create_state(
        lambda rngs: convert(build(config, MULTI_HEAD, rngs), mixture),
        config.optimiser(config.learning_rate, config.steps),
        jax.random.key(config.seed),
        config.seeds,
        whole.map(lambda model: nnx.state(convert(model, mixture), nnx.Param)),
    )
    return Fitted(graph, state, config.seeds)


def _draw(run: Run, config: Config, bits: dict[str, np.ndarray], use: np.ndarray) -> None:
    run.figure(
        "curves",
        curves_through_training(run, config.arms, "bits", "bits per byte"),
        "Held-out bits per byte through training: mean and range.",
    )
    run.figure(
        "differences",
        figures.differences(bits, MULTI_HEAD),
        "Held-out bits per byte, less those of multi-head attention with the same seed and the same batches; bars are "
        "means. The continued and the converted model have been trained for longer.",
    )
    run.figure(
        "use",
        figures.use_by_class(use[0]),
        "Half of the heads run, first seed: of the bytes of each class, how many keep each routed head.",
    )


EXPERIMENT = Experiment(
    name="mixture_of_heads",
    summary="Tokens of a byte language model run half or three quarters of the heads; conversion of a trained model.",
    paper=Paper(
        "MoH: Multi-Head Attention as Mixture-of-Head Attention",
        "Jin, Zhu, Yuan, Yan",
        "ICML 2025",
        "2410.11842",
    ),
    presets=PRESETS,
    run=run,
)
