"""The experiment's figures."""

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from experiments.lv_hba.claims import ERRORS
from experiments.lv_hba.config import CHECKED


def errors_by_iteration(steps: Int[np.ndarray, " records"], errors: dict[int, Float[np.ndarray, " records"]]) -> Figure:
    """The toy's relative error of every size, with the bars."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for size, error in errors.items():
        axis.plot(steps, error, label=f"{size} outer variables")
    axis.plot(CHECKED, ERRORS, "k_", ms=14, label="bar")
    axis.set(xscale="log", yscale="log", xlabel="iteration", ylabel="relative error of the outer variables")
    axis.legend(fontsize="small")
    return figure


def losses_by_iteration(
    steps: Int[np.ndarray, " records"],
    learned: dict[str, Float[np.ndarray, "seeds records"]],
    dropped: dict[str, Float[np.ndarray, "seeds records"]],
) -> Figure:
    """Validation loss at the exact inner solution, and at the method's own inner variables, which misleads."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    lines = {
        "exact inner solution": learned["exact"],
        "the method's own inner variables": learned["own"],
        "step dropped, exact inner solution": dropped["exact"],
        "step dropped, its own inner variables": dropped["own"],
    }
    for name, values in lines.items():
        (line,) = axis.plot(steps, values.mean(axis=0), label=name)
        axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, lw=0)
    axis.set(xlabel="iteration", ylabel="validation loss")
    axis.legend(fontsize="small")
    return figure
