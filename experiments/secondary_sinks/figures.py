"""The experiment's figures."""

from collections import Counter

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.secondary_sinks.planted import Planted
from experiments.secondary_sinks.pretrained import Steered


def by_block(norms: dict[str, Float[np.ndarray, " layers"]], scores: dict[str, Float[np.ndarray, " layers"]]) -> Figure:
    """Norms after each block, and weights on tokens in each."""
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    for axis, groups, label in zip(
        figure.subplots(1, 2), (norms, scores), ("norm after the block", "mean weight on the token"), strict=True
    ):
        for name, each in groups.items():
            axis.plot(each, ".-", label=name)
        axis.set(xlabel="block", ylabel=label, yscale="log")
        axis.legend(fontsize="small")
    return figure


def histogram(levels: Counter[tuple[int, int]], layers: int) -> Figure:
    """How many sinks start after each block and live for so many."""
    counts = np.zeros((layers + 1, layers))
    for (start, lifetime), count in levels.items():
        counts[lifetime, start] = count
    figure = Figure(figsize=(4.5, 3.8), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(np.where(counts > 0, counts, np.nan), cmap="viridis", origin="lower", aspect="auto")
    axis.set(xlabel="first block", ylabel="lifetime in blocks")
    figure.colorbar(image, ax=axis, label="sinks")
    return figure


def sweeps(steered: Steered) -> Figure:
    """Score and lifetime of each sink by the scale of what the feed-forward layer adds to it."""
    return _sweeps(steered.scales, steered.scores, steered.lifetimes, "scale")


def plantings(planted: Planted) -> Figure:
    """Score and lifetime of what is planted in each text by its norm."""
    return _sweeps(planted.strengths, planted.scores, planted.lifetimes, "norm planted, of the primary sink's")


def _sweeps(along: np.ndarray, scores: np.ndarray, lifetimes: np.ndarray, label: str) -> Figure:
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    for axis, values, name in zip(
        figure.subplots(1, 2), (scores, lifetimes), ("mean weight on the token", "lifetime in blocks"), strict=True
    ):
        axis.plot(along, values.T, color="tab:blue", alpha=0.3, lw=0.8)
        axis.plot(along, values.mean(axis=0), "o-", color="black")
        axis.set(xlabel=label, ylabel=name)
        axis.set_xscale("symlog", linthresh=0.1)
    return figure
