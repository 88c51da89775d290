"""The experiment's figures."""

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


def accuracy_by_work(accuracy: dict[str, Float[np.ndarray, " seeds"]], work: dict[str, int], majority: float) -> Figure:
    """Each arm's accuracy against the multiply-adds of its attention, a dot for each seed."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for arm, values in accuracy.items():
        axis.plot(np.full(len(values), work[arm]), values, "o", alpha=0.7, label=arm.replace("_", " "))
    axis.axhline(majority, color="grey", lw=0.8)
    axis.text(min(work.values()), majority, "always the most frequent answer", va="bottom", fontsize="small")
    axis.set(xlabel="multiply-adds of routing and attention for a mosaic", ylabel="accuracy", xscale="log")
    axis.legend(fontsize="small")
    return figure


def where_tiles_read(
    images: Float[np.ndarray, "examples height width"],
    lists: Int[np.ndarray, "examples regions top_k"],
    tile: int,
) -> Figure:
    """Mosaics with the regions that one tile, in red, reads, in blue."""
    count = len(images)
    figure = Figure(figsize=(2.6 * count, 2.8), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    tiles = round(lists.shape[1] ** 0.5)
    side = images.shape[1] // tiles
    for axis, image, read in zip(axes, images, lists[:, tile], strict=True):
        axis.imshow(image, cmap="gray_r")
        for region, colour, margin in [*((int(each), "C0", 0.5) for each in read), (tile, "C3", 1.2)]:
            row, column = divmod(region, tiles)
            corner = (column * side - 0.5 + margin, row * side - 0.5 + margin)
            extent = side - 2 * margin
            axis.add_patch(_rectangle(corner, extent, colour))
        axis.set_axis_off()
    return figure


def _rectangle(corner: tuple[float, float], extent: float, colour: str) -> Rectangle:
    return Rectangle(corner, extent, extent, fill=False, edgecolor=colour, linewidth=1.8)
