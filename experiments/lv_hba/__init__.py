"""LV-HBA: constrained bilevel optimisation by first derivatives, where answers are known and on real data.

    jattn run lv_hba                    all parts: two toys, a machine, data cleaning, a race, group lasso
    jattn run lv_hba --parts race       every method of `jattn.bilevel` against the others

Everything is measured at exact inner solutions. The numbers of the race depend on the machine and on what else it does,
for the clock decides how often methods iterate; those of the other parts do not.

Read in this order: config; toy, first_toy, support_vectors, data_cleaning, group_lasso; race, entrants, tracks; claims,
figures.
"""

import logging
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.lv_hba import claims, entrants, figures, group_lasso, tracks
from experiments.lv_hba.config import PARTS, PRESETS, Config, Machine
from experiments.lv_hba.first_toy import RELEASED_STEPS, coefficients, least, released
from experiments.lv_hba.race import Raced, Track, race, random_search, seconds_to
from experiments.lv_hba.support_vectors import RECORDS, baselines, learn, split
from experiments.lv_hba.toy import PENALTY, errors
from jattn.bilevel import extrapolate
from jattn.bilevel.toys import CONVEX_TOY_ANSWER
from jattn.runs import Experiment, Paper, Run

log = logging.getLogger("jattn")


def run(config: Config, run: Run) -> None:
    """Part after part."""
    parts = (_toy, _first_toy, _machine, _cleaning, _race, _group_lasso)
    results = {}
    for name, part in zip(PARTS, parts, strict=True):
        if name not in config.parts:
            continue
        run.stop_if_asked()
        results[name] = part(config, run)
        log.info("%s done", name.replace("_", " "))
        run.save_results(results)


def _toy(config: Config, run: Run) -> Any:
    """In every size with a growing penalty; in the smallest with constant ones."""
    part, found = config.toy, {}
    for size in part.sizes:
        run.stop_if_asked()
        found[size], _ = errors(size, part.steps, part.record_every)
        log.info("toy of %d outer variables: relative error %.4g", size, found[size][-1])
    smallest = min(part.sizes)
    constant, _ = errors(smallest, part.steps, part.record_every, 1.0)
    once, twice = (errors(smallest, part.steps, part.record_every, factor * part.penalty)[1] for factor in (1, 2))
    points = (twice, np.asarray(extrapolate(once, twice)), (once + twice) / 2)
    first, second, third = (float(np.sqrt(np.mean((each / CONVEX_TOY_ANSWER - 1) ** 2))) for each in points)
    steps = part.record_every * np.arange(1, part.steps // part.record_every + 1)
    penalties = np.asarray(PENALTY(steps - 1), np.float64)
    claims.settle_toy(run, found, constant, penalties, (first, second, third), part.record_every)
    run.figure("toy", figures.errors_by_iteration(steps, found), "The toy's relative error, and the bars set for it.")
    return {
        "relative errors by size": {size: error.tolist() for size, error in found.items()},
        "errors of twice the penalty, extrapolated, of the mean": [first, second, third],
    }


def _first_toy(config: Config, run: Run) -> Any:
    """In every size LV-HBA with the released settings, and with the outer objective left out."""
    part, found = config.first_toy, {}
    for size in part.sizes:
        run.stop_if_asked()
        instances = [coefficients(size, (config.seed, seed)) for seed in range(part.instances)]
        found[size] = {"least": np.array([least(each) for each in instances])}
        for name, weight in (("learned", 1.0), ("outer objective left out", 0.0)):
            made = jax.jit(partial(released, steps=RELEASED_STEPS, weight=weight))
            found[size][name] = np.array([np.asarray(made(each), np.float64) for each in instances])
        log.info("first toy of %d outer variables: %s", size, _shares_of_least(found[size])["learned"])
    claims.settle_first_toy(run, {size: _shares_of_least(values) for size, values in found.items()})
    return _listed({f"{size} variables": values for size, values in found.items()})


def _shares_of_least(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The hyper-objective at the end over its least value, by instance."""
    return {name: values[:, -1] / found["least"] for name, values in found.items() if name != "least"}


def _machine(config: Config, run: Run) -> Any:
    learned, unguided, compared = _machines(config.machine, config.seed, run)
    claims.settle_machine(run, learned, unguided, compared)
    caption = "Validation loss by iteration, mean and range of splits: where the method's own inner variables mislead."
    recorded = config.machine.steps // RECORDS * np.arange(RECORDS + 1)
    run.figure("machine", figures.losses_by_iteration(recorded, learned, unguided), caption)
    return _listed({"learned": learned, "outer objective left out": unguided, "compared": compared})


def _cleaning(config: Config, run: Run) -> Any:
    part = config.cleaning
    learned, unguided, compared = _machines(part, config.seed, run)
    splits = [split(part, (config.seed, seed)) for seed in range(part.seeds)]
    down = np.stack([learned["costs"][seed] < np.asarray(data.start) for seed, data in enumerate(splits)])
    wrong = np.stack([np.asarray(data.corrupted) for data in splits])
    shares = tuple((down & kind).sum(axis=1) / kind.sum(axis=1) for kind in (wrong, ~wrong))
    claims.settle_cleaning(run, learned, unguided, compared, *shares)
    caption = "Cleaning: validation loss by iteration, mean and range of splits."
    recorded = part.steps // RECORDS * np.arange(RECORDS + 1)
    run.figure("cleaning", figures.losses_by_iteration(recorded, learned, unguided), caption)
    found = {"learned": learned, "outer objective left out": unguided, "compared": compared}
    return _listed(found) | {"share of turned and of right labels down": [share.tolist() for share in shares]}


def _machines(given: Machine, seed: int, run: Run) -> tuple[dict[str, np.ndarray], ...]:
    """Of every split a `Learned`, one with the outer objective left out, and the `Baselines`; seeds by records."""
    guided, unguided = (jax.jit(partial(learn, steps=given.steps, stretch=given.stretch, weight=w)) for w in (1.0, 0.0))
    compare, found, penalty = jax.jit(baselines), [], given.penalties[0]
    if len(given.penalties) > 1:
        data = split(given, (seed, given.seeds))
        losses = {each: float(np.nan_to_num(guided(data, each).exact[-1], nan=np.inf)) for each in given.penalties}
        penalty = min(losses, key=lambda each: losses[each])
        log.info("penalty %g: validation losses %s", penalty, losses)
    for number in range(given.seeds):
        run.stop_if_asked()
        data = split(given, (seed, number))
        learned = guided(data, penalty)
        found.append((learned, unguided(data, penalty), compare(data, learned.costs, jax.random.key(seed + number))))
        log.info("split %d: validation loss %.4g to %.4g", number, learned.exact[0], learned.exact[-1])
    return tuple(_stacked(list(each)) for each in zip(*found, strict=True))


def _race(config: Config, run: Run) -> Any:
    part, numbers = config.race, range(1, config.race.instances + 1)
    every = {"digits": tracks.digits_track(part, config.seed), "first_toy": tracks.toy_track(part, config.seed)}
    curvature = tracks.largest_curvature(part, every["digits"].instance(0))
    lineup = {"digits": entrants.of_smooth_problems(curvature), "first_toy": entrants.of_equalities()}
    raced, ways = {}, {}
    for title in part.tracks:
        track = every[title]
        chosen = {name: each for name, each in lineup[title].items() if name in (part.methods or lineup[title])}
        raced[title] = dict(race(track, chosen, part.instances, part.seconds, part.records, run.stop_if_asked))
        ways[title] = np.array([track.way(track.instance(number)) for number in numbers], np.float64)
    caption = "Every method that fits: the share of the way left at the exact inner solution, by CPU seconds."
    run.figure("race", figures.race(raced, ways), caption)
    shares = {t: {name: _shares(each, ways[t]) for name, each in methods.items()} for t, methods in raced.items()}
    times = {
        title: {name: _times(each, ways[title], tracks.LEVELS[title]) for name, each in methods.items()}
        for title, methods in raced.items()
    }
    found = {
        "settings": {title: {name: each.settings for name, each in laps.items()} for title, laps in raced.items()},
        "iterations": {
            title: {name: [lap.iterations for lap in each.laps] for name, each in laps.items()}
            for title, laps in raced.items()
        },
        "share of the way": _listed(shares),
        "seconds to levels": _listed(times),
        "ways": _listed(ways),
    }
    if "digits" in raced:
        found |= _cleaned(config, run, every["digits"], raced["digits"], shares["digits"], ways["digits"])
    if "first_toy" in raced:
        claims.settle_toy_race(run, {name: each[:, 1] for name, each in times["first_toy"].items()})
    return found


def _cleaned(
    config: Config, run: Run, track: Track, raced: dict[str, Raced], shares: dict[str, np.ndarray], ways: np.ndarray
) -> dict[str, Any]:
    """What the race on digits is held against, and what it was worth."""
    part = config.race
    samples = [track.instance(number) for number in range(1, part.instances + 1)]
    step = tracks.RANDOM_STEP / part.stretch
    ends = np.array([random_search(track, each, part.seconds, step, config.seed) for each in samples])
    searched = (ways[:, 0] - ends) / (ways[:, 0] - ways[:, 1])
    claims.settle_digits_race(run, shares, searched)
    measure = jax.jit(partial(tracks.cleaned, part))
    cleaned = {
        name: np.mean([measure(data, lap.outer) for data, lap in zip(samples, each.laps, strict=True)], axis=0)
        for name, each in raced.items()
    }
    uncleaned = [tracks.without_cleaning(part, each, config.seed) for each in samples]
    return {
        "share of the way, random search": searched.tolist(),
        "cleaned": _listed(cleaned),
        "test errors without cleaning": {name: [each[name] for each in uncleaned] for name in uncleaned[0]},
    }


def _group_lasso(config: Config, run: Run) -> Any:
    part, found = config.group_lasso, []
    compare = jax.jit(partial(group_lasso.compare, part))
    for seed in range(config.seed, config.seed + part.seeds):
        run.stop_if_asked()
        found.append(compare(group_lasso.samples(part, (seed,)), jax.random.key(seed)))
        log.info("group lasso %d: test error %.4g, common %.4g", seed, found[-1].learned[1], found[-1].common[1])
    values = _stacked(found)
    claims.settle_group_lasso(run, values)
    return _listed(values)


def _shares(raced: Raced, ways: np.ndarray) -> np.ndarray:
    """Of the way, by instance; 0 for an iterate that is no number."""
    ends = np.array([lap.hyper_objective[-1] for lap in raced.laps])
    return np.nan_to_num((ways[:, 0] - ends) / (ways[:, 0] - ways[:, 1]), nan=0.0, neginf=0.0)


def _times(raced: Raced, ways: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """CPU seconds until these shares of the way are made, instances by levels; inf if never."""
    return np.array(
        [
            [seconds_to(lap, start - level * (start - mark)) for level in levels]
            for lap, (start, mark) in zip(raced.laps, ways, strict=True)
        ]
    )


def _stacked(found: list[Any]) -> dict[str, np.ndarray]:
    """Named tuples alike, one for each repetition, by field."""
    return {
        name: np.stack([np.asarray(getattr(each, name), np.float64) for each in found]) for name in found[0]._fields
    }


def _listed(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _listed(each) if isinstance(each, dict) else np.asarray(each).tolist() for name, each in found.items()
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
