"""The experiment's figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure


def profile(absolute: Sequence[float], relative: Sequence[float]) -> Figure:
    """Sinks beyond the first token, by layer."""
    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(absolute, "o-", label="mean weight above a constant")
    axis.plot(relative, "s--", label="mean weight above a multiple of 1 / length")
    axis.set(xlabel="layer", ylabel="sinks per head and prompt")
    axis.legend(fontsize="small")
    return figure


def grid(changes: Float[np.ndarray, "layers heads"], first: int) -> Figure:
    """What calibrating each head alone does to the margin."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    most = max(float(np.abs(changes).max()), 1e-9)
    extent = (-0.5, changes.shape[1] - 0.5, first + len(changes) - 0.5, first - 0.5)
    image = axis.imshow(changes, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", extent=extent)
    axis.set(xlabel="head", ylabel="layer")
    figure.colorbar(image, ax=axis, label="change of the margin, nats")
    return figure


def arms(test: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Accuracy and margin on the test, of every arm."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, quantity in zip(axes, ("accuracy", "margin"), strict=True):
        for row, found in enumerate(test.values()):
            axis.plot(found[quantity], np.full(len(found[quantity]), row), "o")
        axis.axvline(np.mean(test["unchanged"][quantity]), color="grey", lw=0.8)
        axis.set(xlabel=quantity)
    axes[0].set_yticks(range(len(test)), list(test))
    axes[0].invert_yaxis()
    return figure
