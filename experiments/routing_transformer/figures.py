"""The experiment's figures."""

import numpy as np
from matplotlib.figure import Figure

from experiments.routing_transformer.config import Config
from experiments.routing_transformer.measure import Look


def weight_by_distance(config: Config, look: Look) -> Figure:
    """How far back heads look: cumulated weight by distance, of each layer with routing heads, mean over seeds."""
    layers = look.distance.shape[1]
    figure = Figure(figsize=(4.5 * layers, 3.8), layout="constrained")
    for layer, axis in enumerate(figure.subplots(1, layers, squeeze=False)[0]):
        for kind, name in enumerate(("local heads", "routing heads")):
            cumulated = look.distance[:, layer, kind].mean(axis=0).cumsum()
            axis.plot(np.arange(1, len(cumulated) + 1), cumulated, label=name)
        axis.axvline(config.block + config.look_back, color="grey", lw=0.8)
        number = config.layers - layers + layer + 1
        axis.set(
            xscale="log", xlabel="bytes back, itself counted 1", ylabel="weight up to there", title=f"layer {number}"
        )
        axis.legend(fontsize="small")
    return figure
