"""The experiment's figures."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure


def effects(
    names: Float[np.ndarray, "layers heads"], colours: Float[np.ndarray, "layers heads"], labelled: int = 6
) -> Figure:
    """Every head's effect in one task against that in the other, the largest by name."""
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="grey", lw=0.5)
    axis.axvline(0, color="grey", lw=0.5)
    axis.plot(names.ravel(), colours.ravel(), ".", ms=4)
    most = {int(each) for task in (names, colours) for each in np.argsort(-np.abs(task), axis=None)[:labelled]}
    for each in sorted(most):
        layer, head = divmod(each, names.shape[1])
        axis.annotate(f"{layer}.{head}", (names.flat[each], colours.flat[each]), fontsize="small")
    axis.set(xlabel="share of the flip, names", ylabel="share of the flip, colours")
    return figure


def repair(rights: dict[str, float], plain: float) -> Figure:
    """Share of colours right among three, by what is done to the last row."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    axis.barh(list(rights)[::-1], list(rights.values())[::-1])
    axis.axvline(plain, color="grey", lw=0.8, label="as it is")
    axis.axvline(1 / 3, color="grey", lw=0.8, ls=":", label="chance")
    axis.set(xlabel="right among three", xlim=(0, 1))
    axis.legend(fontsize="small")
    return figure
