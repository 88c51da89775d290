"""Bi-level routing attention: counting what is alike in mosaics of handwritten digits.

    jattn run biformer        seven arms, three seeds: full attention, routed regions, windows, random regions

Of each tile of a mosaic it is asked how many other tiles show the same digit. The paper's own images are not to be had;
its models and their sizes are `jattn.models.biformer`. Read in this order: config, mosaics, model, measure, claims,
figures.
"""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.biformer import claims, figures
from experiments.biformer.config import CHUNK, FULL, PRESETS, READ, Config, routed
from experiments.biformer.measure import attention_work, difference_as, lists_of, majority, share_of_class
from experiments.biformer.model import accuracy, build, loss, random_lists
from experiments.biformer.mosaics import Mosaics, Parts, compose, split
from jattn.distributed import batch_mesh
from jattn.runs import Experiment, Paper, Run
from jattn.train import Fitted, Generated, create_state, fit
from jattn.train.curves import curves_through_training

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Train every arm on mosaics of the same pictures, answer mosaics of others, judge."""
    parts = split(config)
    validation_key, test_key, lists_key = jax.random.split(jax.random.key(config.seed + 1), 3)
    validation = compose(parts.validation, config.tiles, config.validation_mosaics, validation_key)
    test = compose(parts.test, config.tiles, config.test_mosaics, test_key)
    fitted = {arm: _train(run, config, parts, validation, arm) for arm in config.arms}
    log.info("answering %d mosaics of other pictures", config.test_mosaics)
    tested = {arm: each.map(accuracy, shared=(test,)) for arm, each in fitted.items()}
    right = {arm: np.asarray(each["accuracy"], np.float64) for arm, each in tested.items()}
    routing = fitted[routed(READ)]
    drawn = jax.vmap(partial(random_lists, config))(jax.random.split(lists_key, config.seeds))
    displaced = routing.map(lambda model, lists, test: accuracy(model, test, lists)["accuracy"], drawn, shared=(test,))
    state = create_state(
        partial(build, config, routed(READ)), config.optimiser(), jax.random.key(config.seed), config.seeds
    )
    few = jax.tree.map(lambda each: each[:CHUNK], test)
    after, before = (_alike(each, few) for each in (routing, Fitted(*state, config.seeds)))
    exact, halved = (
        np.asarray(fitted[FULL].map(partial(difference_as, arm, config), shared=(few,)), np.float64)
        for arm in (routed(config.regions), routed(_half(config)))
    )
    claims.settle(
        run,
        config,
        right,
        np.asarray(displaced, np.float64),
        (after.max(axis=1), before.max(axis=1)),
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
            "same class among regions read over chance, seeds by blocks": after.tolist(),
            "the same before training": before.tolist(),
            "multiply-adds of routing and attention": work,
        }
    )
    run.figure(
        "curves",
        curves_through_training(run, config.arms, "accuracy", "accuracy"),
        "Accuracy on validation mosaics: mean and range of seeds.",
    )
    run.figure("work", figures.accuracy_by_work(right, work, majority(test)), "Accuracy against the work of attention.")
    block = int(after[0].argmax())
    lists = np.asarray(routing.map(lambda model, few: lists_of(model, few)[block], shared=(few,)))[0, :5]
    run.figure(
        "regions",
        figures.where_tiles_read(np.asarray(few.images)[:5, :, :, 0], lists, tile=config.tiles + 1),
        f"Which regions a tile (red) reads (blue) in block {block + 1} of the first seed.",
    )


def _train(run: Run, config: Config, parts: Parts, validation: Mosaics, arm: str) -> Fitted:
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
        evaluate=lambda model: accuracy(model, validation),
        mesh=batch_mesh(config.devices),
    )
    run.stop_if_asked()
    return fitted


def _half(config: Config) -> int:
    """The largest number of regions read, of the config's, that is not all."""
    return max(top_k for top_k in config.top_k if top_k < config.regions)


def _alike(fitted: Fitted, mosaics: Mosaics) -> Float[np.ndarray, "seeds blocks"]:
    """`share_of_class` of every block."""
    found = fitted.map(
        lambda model, mosaics: jnp.stack([share_of_class(each, mosaics.classes) for each in lists_of(model, mosaics)]),
        shared=(mosaics,),
    )
    return np.asarray(found, np.float64)


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
