"""The experiment's figures."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.mixture_of_heads.measure import CLASSES


def differences(bits: dict[str, Float[np.ndarray, " seeds"]], against: str) -> Figure:
    """Of everything measured, bits per byte over those of one arm, a dot for each seed."""
    names = [name for name in bits if name != against]
    figure = Figure(figsize=(7, 0.4 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    for row, name in enumerate(names):
        difference = bits[name] - bits[against]
        axis.plot(difference, np.full(len(difference), row), "o", color="C0", alpha=0.6)
        axis.plot(difference.mean(), row, "|", color="black", ms=16)
    axis.axvline(0, color="grey", lw=0.8)
    axis.set(xlabel=f"bits per byte, less those of {against.replace('_', ' ')}")
    axis.set_xscale("symlog", linthresh=0.03)
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.invert_yaxis()
    return figure


def use_by_class(use: Float[np.ndarray, "layers routed classes"]) -> Figure:
    """Of the tokens of each class, the share that keeps each routed head, over even use."""
    shares = use / np.maximum(use.sum(axis=1, keepdims=True), 1) * use.shape[1]
    figure = Figure(figsize=(3.2 * len(shares) + 1.5, 3.2), layout="constrained")
    axes = figure.subplots(1, len(shares), squeeze=False)[0]
    for layer, (axis, values) in enumerate(zip(axes, shares, strict=True)):
        image = axis.imshow(values, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto")
        axis.set(title=f"layer {layer + 1}", xlabel="", ylabel="routed head" if layer == 0 else "")
        axis.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right")
    figure.colorbar(image, ax=list(axes), label="use over even use")
    return figure
