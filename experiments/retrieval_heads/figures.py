"""The experiment's figures."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure


def recalls(
    everything: Float[np.ndarray, " prompts"],
    without: dict[str, dict[int, Float[np.ndarray, " prompts"]]],
    drawn: dict[str, Float[np.ndarray, "sets prompts"]],
) -> Figure:
    """Recall of needles without the best heads, and without random ones."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    axis.axhline(everything.mean(), color="grey", lw=0.8, label="all heads")
    for mode, found in without.items():
        axis.plot(list(found), [each.mean() for each in found.values()], "o-", label=f"without the best, {mode}")
    for name, sets in drawn.items():
        means = sets.mean(axis=1)
        axis.plot(np.full(len(means), 10), means, "x", label=f"without random heads, {name}")
    axis.set(xlabel="heads switched off", ylabel="recall of needles", ylim=(0, 1.05))
    axis.legend(fontsize="small")
    return figure
