"""Bi-level routing attention: counting what is alike in mosaics of handwritten digits.

    jattn run biformer        five arms, three seeds: full attention, routed regions, windows, random regions

Of each tile of a mosaic it is asked how many other tiles show the same digit. The paper's own images are not to be had;
its models and their sizes are `jattn.models.biformer`. Read in this order: config, mosaics, model, measure, claims,
figures.
"""

import logging
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.biformer import claims, figures
from experiments.biformer.config import CHUNK, FULL, PRESETS, READ, Config, routed
from experiments.biformer.measure import attention_work, differences_as, lists_of, majority, share_of_class
from experiments.biformer.model import accuracy, build, loss, random_lists
from experiments.biformer.mosaics import Mosaics, Parts, compose, split
from jattn.distributed import batch_mesh
from jattn.runs import Experiment, Paper, Run
from jattn.train import Fitted, Generated, create_state, fit, mapped
from jattn.train.curves import curves_through_training

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Train every arm on mosaics of the same pictures, answer mosaics of others, judge."""
    parts = split(config)
    validation_key, test_key, lists_key = jax.random.split(jax.random.key(config.seed + 1), 3)
    composed = jax.jit(compose, static_argnums=(1, 2))
    validation = composed(parts.validation, config.tiles, config.validation_mosaics, validation_key)
    test = composed(parts.test, config.tiles, config.test_mosaics, test_key)
    _, untrained = create_state(
        partial(build, config, routed(READ)), config.optimiser(), jax.random.key(config.seed), config.seeds
    )
    fitted = {arm: _train(run, config, parts, validation, arm, untrained.parameters) for arm in config.arms}
    log.info("answering %d mosaics of other pictures", config.test_mosaics)
    tested = {arm: each.evaluate(test) for arm, each in fitted.items()}
    right = {arm: np.asarray(each["accuracy"], np.float64) for arm, each in tested.items()}
    routing = fitted[routed(READ)]
    drawn = jax.jit(jax.vmap(partial(random_lists, config)))(jax.random.split(lists_key, config.seeds))
    displaced = routing.map(lambda model, lists, test: accuracy(model, test, lists)["accuracy"], drawn, shared=(test,))
    few = jax.tree.map(lambda each: each[:CHUNK], test)
    read = mapped(lambda model, few: jnp.stack(lists_of(model, few)))
    after, before = (read(each, shared=(few,)) for each in (routing, replace(routing, state=untrained)))
    share = jax.jit(jax.vmap(jax.vmap(share_of_class, (0, None)), (0, None)))  # of seeds and blocks
    alike, alike_before = (np.asarray(share(each, few.classes), np.float64) for each in (after, before))
    others = tuple(routed(top_k) for top_k in (config.regions, _half(config)))
    exact, halved = np.asarray(fitted[FULL].map(partial(differences_as, others, config), shared=(few,)), np.float64).T
    claims.settle(
        run,
        config,
        right,
        np.asarray(displaced, np.float64),
        (alike.max(axis=1), alike_before.max(axis=1)),
        (exact, halved),
    )
    work = {arm: attention_work(config, arm) for arm in config.arms}
    run.save_results(
        {
            "pictures to train with": len(parts.train.classes),
            "share of the most frequent answer": majority(test),
            "accuracy": {arm: values.tolist() for arm, values in right.items()},
            "tiles named": {arm: np.asarray(each["named"]).tolist() for arm, each in tested.items()},
            "accuracy with random regions in place of those routed to": np.asarray(displaced).tolist(),
            "same class among regions read over chance, seeds by blocks": alike.tolist(),
            "the same before training": alike_before.tolist(),
            "multiply-adds of routing and attention": work,
        }
    )
    run.figure(
        "curves",
        curves_through_training(run, config.arms, "accuracy", "accuracy"),
        "Accuracy on validation mosaics: mean and range of seeds.",
    )
    run.figure("work", figures.accuracy_by_work(right, work, majority(test)), "Accuracy against the work of attention.")
    block = int(alike[0].argmax())
    lists = np.asarray(after)[0, block, :5]
    run.figure(
        "regions",
        figures.where_tiles_read(np.asarray(few.images)[:5, :, :, 0], lists, tile=config.tiles + 1),
        f"Which regions a tile (red) reads (blue) in block {block + 1} of the first seed.",
    )


def _train(run: Run, config: Config, parts: Parts, validation: Mosaics, arm: str, untrained: nnx.State) -> Fitted:
    """From those parameters: the arms have the same."""
    fitted = fit(
        run,
        arm,
        build=partial(build, config, arm),
        loss=partial(loss, config.naming),
        optimiser=config.optimiser(),
        data=Generated(partial(compose, parts.train, config.tiles, config.batch_size)),
        key=jax.random.key(config.seed),
        schedule=config.schedule(),
        seeds=config.seeds,
        evaluate=accuracy,
        evaluate_on=(validation,),
        parameters=untrained,
        mesh=batch_mesh(config.devices),
    )
    run.stop_if_asked()
    return fitted


def _half(config: Config) -> int:
    """The largest number of regions read, of the config's, that is not all."""
    return max(top_k for top_k in config.top_k if top_k < config.regions)


EXPERIMENT = Experiment(
    name="biformer",
    summary="Tiles of digit mosaics read the regions that content routes them to, and count their like.",
    paper=Paper(
        "BiFormer: Vision Transformer with Bi-Level Routing Attention",
        "Zhu, Wang, Ke, Zhang, Lau",
        "CVPR 2023",
        "2303.08810",
    ),
    presets=PRESETS,
    run=run,
)
