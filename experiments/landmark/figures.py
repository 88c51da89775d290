"""The experiment's figures."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.landmark.config import Config


def bits_by_place(config: Config, long: dict[str, Float[np.ndarray, "seeds predicted"]]) -> Figure:
    """Bits per byte along long windows, in means over as many bytes as were trained on."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, bits in long.items():
        means = bits.mean(axis=0).reshape(-1, config.length).mean(axis=1)
        axis.plot(config.length * (np.arange(len(means)) + 0.5), means, marker="o", label=name)
    axis.set(xlabel="place in the window (bytes)", ylabel="bits per byte")
    axis.legend(fontsize="small")
    return figure


def weight_by_distance(weights: Float[np.ndarray, "seeds layers blocks"]) -> Figure:
    """How much tokens read of blocks so many before their own."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = figure.subplots()
    for layer, each in enumerate(weights.mean(axis=0), start=1):
        axis.plot(np.arange(len(each)), each, marker="o", label=f"layer {layer}")
    axis.set(xlabel="blocks back (0: its own)", ylabel="weight", yscale="log")
    axis.legend(fontsize="small")
    return figure
