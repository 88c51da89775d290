"""Circuit reuse: whether heads that tell who is given to also tell what colour an object has.

    jattn weights fetch smollm2-135m
    jattn run circuit_reuse

Two parts: a network whose circuit is set by hand (`constructed`), and SmolLM2-135M-Instruct (`pretrained`), whose heads
are found for both tasks by path patching in the last row, compared, and one of which is then made to read, in prompts
of colours, the two wrong ones, as it reads the wrong name. Which are wrong is known from the answer: this tests what
the head does and is no way to answer better.

Read in this order: config, tasks, constructed, patching, pretrained, claims, figures.
"""

from typing import Any

import numpy as np

from experiments.circuit_reuse import claims, constructed, figures, pretrained
from experiments.circuit_reuse.config import PRESETS, Config
from jattn.pretrained.load import load
from jattn.runs import Experiment, Paper, Run


def run(config: Config, run: Run) -> None:
    """Part after part."""
    results = {}
    for name, part in (("constructed", _constructed), ("pretrained", _pretrained)):
        if name in config.parts:
            run.stop_if_asked()
            results[name] = part(config, run)
            run.save_results(results)


def _constructed(config: Config, run: Run) -> Any:
    found = constructed.effects(np.random.default_rng(config.seed), config.problems)
    claims.settle_constructed(run, found)
    return {name: each.tolist() for name, each in found._asdict().items()}


def _pretrained(config: Config, run: Run) -> Any:
    model, tokenizer = load(config.pretrained.model)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    found = pretrained.measure(model, encode, config.pretrained, config.seed, run.stop_if_asked)
    claims.settle_pretrained(run, found, config.seed)
    return report(run, found)


def report(run: Run, found: pretrained.Found) -> Any:
    """Figures, and what claims do not tell."""
    names, colours = found.names.effects(), found.colours.effects()
    repair = found.repair
    head = f"{repair.head[0]}.{repair.head[1]}"
    tried = {f"{head}, wrong colours": repair.repaired, f"{head}, right colour": repair.promoted}
    tried |= {f"{head}, everything alike": repair.uniform}
    for some in (repair.others, repair.readers, repair.together):
        tried |= {f"{name}, wrong colours": each for name, each in some.items()}
    run.figure("effects", figures.effects(names, colours), "Effect of every head's corrupted output on the answer.")
    rights = {name: float(each.right.mean()) for name, each in tried.items()}
    run.figure("repair", figures.repair(rights, float(repair.plain.right.mean())), "What one head's last row reads.")
    reads = found.names.reads

    def row(at: list[int]) -> dict[str, float]:
        kinds = {
            "effect": names, "through queries": found.steering, "direct": found.direct,
            "unrelated names": found.unrelated, "effect on colours": colours, "reads the right name": reads.right,
            "reads the wrong name": reads.wrong, "reads the right colour": found.colours.reads.right,
            "reads the wrong colours": found.colours.reads.wrong,
        }  # fmt: skip
        return {name: round(float(each[tuple(at)]), 4) for name, each in kinds.items()}

    def between_halves(task: pretrained.Search) -> float:
        half = len(task.clean) // 2
        one, other = (task.effects(which).ravel() for which in (slice(half), slice(half, None)))
        return float(np.corrcoef(one, other)[0, 1])

    listed = found.circuit | found.best_for_colours
    return {
        "margins": {
            task: {"clean": float(each.clean.mean()), "twins": float(each.corrupt.mean())}
            for task, each in (("names", found.names), ("colours", found.colours))
        },
        "heads": {f"{at[0]}.{at[1]}": row(at) for at in np.argwhere(listed).tolist()},
        "best for names": claims.heads(found.best),
        "best for colours": claims.heads(found.best_for_colours),
        "circuit": claims.heads(found.circuit),
        "correlation of effects from two halves": {
            "names": between_halves(found.names),
            "colours": between_halves(found.colours),
        },
        "rank correlation of effects on names": {
            "with those of slopes": claims.rank_correlation(names.ravel(), found.attributed.ravel()),
            "with those of unrelated names": claims.rank_correlation(names.ravel(), found.unrelated.ravel()),
            "with those on colours": claims.rank_correlation(names.ravel(), colours.ravel()),
        },
        "colours": {
            name: {"right among three": float(each.right.mean()), "of all tokens": float(each.among_all.mean())}
            for name, each in {"as it is": repair.plain, **tried}.items()
        },
    }


EXPERIMENT = Experiment(
    name="circuit_reuse",
    summary="Heads found for one task and compared with those of another, and one made to do there what it does here.",
    paper=Paper(
        "Circuit Component Reuse Across Tasks in Transformer Language Models",
        "Merullo, Eickhoff, Pavlick",
        "ICLR 2024",
        "2310.08744",
    ),
    presets=PRESETS,
    run=run,
)
