"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Yao, Yu, Zeng and Zhang, ICLR 2024, arXiv 2401.16164. Its figures are curves without numbers, and the code
released with it never moves the hyperparameters of its support vector machine.
"""

import numpy as np
from jaxtyping import Float

from experiments.lv_hba.config import CHECKED
from jattn.runs import Bar, Claim, Run

ERRORS = (0.05, 0.025, 0.012, 0.007)
"""Bars of the toy's relative error, after `CHECKED` iterations."""

CONVERGES = Claim(
    "it finds the toy's answer",
    f"relative error of the outer variables over {ERRORS} after {CHECKED} iterations: the worst, of all sizes",
    "converges where inner solutions are many",
    Bar(high=1.0),
    "a constant penalty of 1",
)
AT_THE_RATE = Claim(
    "the error is that of the penalty",
    "largest over smallest error times penalty, from 1000 iterations on, of all sizes",
    "f - v = O(K^-p) for penalties of (k + 1)^p",
    Bar(high=1.2),
    "the errors of a constant penalty times the growing one",
)
OF_ANY_SIZE = Claim(
    "iterations do not grow with the size",
    "largest relative difference of errors between the smallest size and others, from 1000 iterations on",
    "shown for 300 variables",
    Bar(high=0.05),
    "its errors after 1000 iterations against the last",
)
EXTRAPOLATED = Claim(
    "two penalties do better than one",
    "error of 2x(2c) - x(c) over that of x(2c), constant penalties",
    "not in the paper: the bias is linear in 1/c",
    Bar(high=0.2),
    "the mean of x(2c) and x(c)",
)
MOVES = Claim(
    "the hyperparameters move",
    "distance of the slack weights from where they started",
    "released code drops the step",
    Bar(low=1.0),
    "the step dropped",
)
FALLS = Claim(
    "validation loss falls",
    "validation loss at the exact inner solution, at the end over the start",
    "curves of accuracy against time",
    Bar(high=0.4),
    "the step dropped",
)
TESTED = Claim(
    "the machine is better",
    "share of wrong labels among test samples at the exact inner solution, at the start less the end",
    "test accuracy rises",
    Bar(low=0.005),
    "the step dropped",
)


def settle_toy(
    run: Run,
    errors: dict[int, Float[np.ndarray, " records"]],
    constant: Float[np.ndarray, " records"],
    penalties: Float[np.ndarray, " records"],
    extrapolated: tuple[float, float, float],
    record_every: int,
) -> None:
    """Judge the claims on the toy.

    Args:
      errors: by size, with a growing penalty; `constant`: of the smallest size with a constant penalty.
      penalties: the growing ones, by record.
      extrapolated: errors of x(2c), of 2x(2c) - x(c), and of their mean.
    """
    checked = [(steps // record_every - 1, bar) for steps, bar in zip(CHECKED, ERRORS, strict=True)]
    checked = [(index, bar) for index, bar in checked if index < len(penalties)]

    def worst(error: Float[np.ndarray, " records"]) -> float:
        return max(float(error[index] / bar) for index, bar in checked)

    later = slice(1000 // record_every - 1, None)

    def spread(error: Float[np.ndarray, " records"]) -> float:
        products = (error * penalties)[later]
        return float(products.max() / products.min())

    run.settle(CONVERGES, max(worst(each) for each in errors.values()), worst(constant))
    run.settle(AT_THE_RATE, max(spread(each) for each in errors.values()), spread(constant))
    smallest, *others = (errors[size] for size in sorted(errors))
    early = smallest[later][: max(1, len(smallest[later]) // 2)]
    apart = max(float(np.abs(each[later] / smallest[later] - 1).max()) for each in others)
    run.settle(OF_ANY_SIZE, apart, float(np.abs(early[0] / smallest[-1] - 1)))
    one, two, mean = extrapolated
    run.settle(EXTRAPOLATED, two / one, mean / one)


def settle_machine(run: Run, learned: dict[str, Float[np.ndarray, "seeds records"]], dropped: dict) -> None:
    """Judge the claims on the support vector machine, from a `Learned` of every split, and with the step dropped."""
    run.settle(MOVES, learned["moved"][:, -1], dropped["moved"][:, -1])
    fallen, falling = (each["exact"][:, -1] / each["exact"][:, 0] for each in (learned, dropped))
    run.settle(FALLS, fallen, falling)
    better, no_better = (each["test_error"][:, 0] - each["test_error"][:, -1] for each in (learned, dropped))
    run.settle(TESTED, better, no_better)
