"""The experiment's figures."""

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.lv_hba.claims import ERRORS
from experiments.lv_hba.config import CHECKED
from experiments.lv_hba.race import Raced


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
    unguided: dict[str, Float[np.ndarray, "seeds records"]],
) -> Figure:
    """Validation loss at the exact inner solution, and at the method's own inner variables, which misleads."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    lines = {
        "exact inner solution": learned["exact"],
        "the method's own inner variables": learned["own"],
        "outer objective left out, exact inner solution": unguided["exact"],
        "outer objective left out, its own inner variables": unguided["own"],
    }
    for name, values in lines.items():
        (line,) = axis.plot(steps, values.mean(axis=0), label=name)
        axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, lw=0)
    axis.set(xlabel="iteration", ylabel="validation loss")
    axis.legend(fontsize="small")
    return figure


def race(tracks: dict[str, dict[str, Raced]], ways: dict[str, Float[np.ndarray, "instances 2"]]) -> Figure:
    """The share of the way that is left, by CPU seconds, of every method: all instances in its colour.

    Args:
      tracks: by title, the methods that raced, each with its laps.
      ways: by title, of every instance the hyper-objectives at the start and at the end of the way.
    """
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    for axis, (title, methods) in zip(np.atleast_1d(figure.subplots(1, len(tracks))), tracks.items(), strict=True):
        colours = colormaps["tab20"](np.linspace(0, 1, 20))
        for colour, (name, raced) in zip(colours, methods.items(), strict=False):
            for lap, (start, mark) in zip(raced.laps, ways[title], strict=True):
                left = (lap.hyper_objective - mark) / (start - mark)
                axis.plot(lap.seconds[1:], left[1:], color=colour, lw=1, label=name if lap is raced.laps[0] else None)
        axis.axhline(0, color="k", lw=0.5)
        axis.set(title=title, xscale="log", ylim=(-0.5, 1.1), xlabel="CPU seconds, compilation excluded")
        axis.legend(fontsize="x-small", ncols=2)
    figure.supylabel("share of the way left, at the exact inner solution", fontsize="medium")
    return figure
