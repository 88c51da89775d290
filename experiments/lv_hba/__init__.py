"""LV-HBA: constrained bilevel optimisation by first derivatives, on a toy and on a support vector machine.

    jattn run lv_hba        a toy with a known answer in four sizes, then slack weights on breast-cancer data

Everything about the support vector machine is measured at exact inner solutions. Its control is the method with the
step of the outer variables dropped, as in the code released with the paper. Data cleaning, the sparse group lasso, the
first toy and a comparison of methods are left out so far.

Read in this order: config, toy, support_vectors, claims, figures.
"""

import logging
from functools import partial

import jax
import numpy as np

from experiments.lv_hba import claims, figures
from experiments.lv_hba.config import PRESETS, Config
from experiments.lv_hba.support_vectors import RECORDS, learn, split
from experiments.lv_hba.toy import ANSWER, PENALTY, errors
from jattn.bilevel import extrapolate
from jattn.runs import Experiment, Paper, Run

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """The toy in every size, with growing and with constant penalties; then every split of the data, with a control."""
    found = {}
    for size in config.sizes:
        run.stop_if_asked()
        found[size], _ = errors(size, config.toy_steps, config.record_every)
        log.info("toy of %d outer variables: relative error %.4g", size, found[size][-1])
    smallest = min(config.sizes)
    constant, _ = errors(smallest, config.toy_steps, config.record_every, 1.0)
    once, twice = (
        errors(smallest, config.toy_steps, config.record_every, factor * config.penalty)[1] for factor in (1, 2)
    )
    points = (twice, np.asarray(extrapolate(once, twice)), (once + twice) / 2)
    first, second, third = (float(np.linalg.norm(each - ANSWER) / abs(ANSWER) / smallest**0.5) for each in points)
    steps = config.record_every * np.arange(1, config.toy_steps // config.record_every + 1)
    penalties = np.asarray(PENALTY(steps - 1), np.float64)
    claims.settle_toy(run, found, constant, penalties, (first, second, third), config.record_every)
    run.figure("toy", figures.errors_by_iteration(steps, found), "The toy's relative error, and the bars set for it.")
    learned, dropped = (_machines(config, run, frozen) for frozen in (False, True))
    claims.settle_machine(run, learned, dropped)
    run.save_results(
        {
            "toy: relative errors by size": {size: error.tolist() for size, error in found.items()},
            "toy: errors of twice the penalty, extrapolated, of the mean": [first, second, third],
            "machine": {name: values.tolist() for name, values in learned.items()},
            "machine, step dropped": {name: values.tolist() for name, values in dropped.items()},
        }
    )
    recorded = config.steps // RECORDS * np.arange(RECORDS + 1)
    caption = "Validation loss by iteration, mean and range of splits: where the method's own inner variables mislead."
    run.figure("machine", figures.losses_by_iteration(recorded, learned, dropped), caption)


def _machines(config: Config, run: Run, frozen: bool) -> dict[str, np.ndarray]:
    """A `Learned` of every split, seeds by records."""
    made = jax.jit(partial(learn, steps=config.steps, stretch=config.stretch, frozen=frozen))
    learned = []
    for seed in range(config.seeds):
        run.stop_if_asked()
        learned.append(made(split(config, seed)))
        how = "step dropped" if frozen else "learned"
        log.info("split %d, %s: validation loss %.4g to %.4g", seed, how, learned[-1].exact[0], learned[-1].exact[-1])
    return {
        name: np.stack([np.asarray(getattr(each, name), np.float64) for each in learned]) for name in learned[0]._fields
    }


EXPERIMENT = Experiment(
    name="lv_hba",
    summary="Constrained bilevel optimisation without second derivatives, where the answer is known and on real data.",
    paper=Paper(
        "Constrained Bi-Level Optimization: Proximal Lagrangian Value function Approach and Hessian-free Algorithm",
        "Yao, Yu, Zeng, Zhang",
        "ICLR 2024",
        "2401.16164",
    ),
    presets=PRESETS,
    run=run,
)
