"""The experiment's figures."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Circle


def error_by_distance(curves: Mapping[str, Float[np.ndarray, "seeds steps"]]) -> Figure:
    """Errors of Jacobians against the distance from the solution, the first seed's."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, style in (("bound", "k--"), ("unrolled", "-"), ("implicit", "-"), ("one_step", ":")):
        axis.plot(curves["distance"][0], curves[name][0], style, label=name.replace("_", " "))
    axis.set(xscale="log", yscale="log", xlabel="distance from the solution", ylabel="error of the Jacobian")
    axis.invert_xaxis()
    axis.legend(fontsize="small")
    return figure


def table_of_rows(errors: Mapping[str, tuple[float, float]]) -> Figure:
    """The catalogue's errors, as a table."""
    figure = Figure(figsize=(6.5, 0.3 * len(errors) + 0.6), layout="constrained")
    axis = figure.subplots()
    axis.axis("off")
    cells = [[name, f"{right:.1e}", f"{wrong:.2g}"] for name, (right, wrong) in errors.items()]
    table = axis.table(cells, colLabels=["row", "error", "error with a term left out"], loc="center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.3)
    return figure


def time_and_memory(
    widths: Sequence[int],
    solvers: Sequence[str],
    ways: Sequence[str],
    seconds: Float[np.ndarray, "seeds widths solvers ways"],
    memory: Float[np.ndarray, "widths solvers ways"],
) -> Figure:
    """CPU time of a hypergradient, mean and range of seeds, and temporary memory, by number of features and solver."""
    figure = Figure(figsize=(3.4 * len(solvers), 6), layout="constrained")
    axes = figure.subplots(2, len(solvers), sharex=True, sharey="row", squeeze=False)
    for column, solver in enumerate(solvers):
        for index, way in enumerate(ways):
            times = seconds[:, :, column, index]
            (line,) = axes[0, column].plot(widths, times.mean(axis=0), "o-", label=way)
            low, high = times.min(axis=0), times.max(axis=0)
            axes[0, column].fill_between(widths, low, high, color=line.get_color(), alpha=0.2, lw=0)
            axes[1, column].plot(widths, memory[:, column, index] / 1e6, "o-", label=way)
        axes[0, column].set(title=solver, xscale="log", yscale="log")
        axes[1, column].set(xlabel="random features", yscale="log")
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("MB")
    axes[0, 0].legend(fontsize="small", title="differentiated")
    return figure


def images(rows: Mapping[str, Float[np.ndarray, "classes pixels"]]) -> Figure:
    """A row of pictures for each entry, one for each class."""
    count = max(len(each) for each in rows.values())
    figure = Figure(figsize=(0.8 * count, 1.0 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            side = round(len(picture) ** 0.5)
            axis.imshow(picture.reshape(side, side), cmap="gray_r")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize="small")
    return figure


def areas(values: Mapping[str, Float[np.ndarray, " seeds"]]) -> Figure:
    """Areas under the curve of every split."""
    figure = Figure(figsize=(6.5, 3), layout="constrained")
    axis = figure.subplots()
    for place, each in enumerate(values.values()):
        axis.plot(each, np.full(len(each), place), "o", alpha=0.6)
        axis.plot([each.mean()], [place], "k|", ms=16)
    axis.set(yticks=range(len(values)), yticklabels=list(values), xlabel="area under the curve, test samples")
    return figure


def sensitivity_by_step(
    steps: Float[np.ndarray, " records"],
    unrolled: Float[np.ndarray, "starts records"],
    implicit: Float[np.ndarray, "starts records"],
) -> Figure:
    """Errors of the sensitivities of every start."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for values, name, colour in ((unrolled, "unrolled", "C1"), (implicit, "implicit", "C0")):
        axis.plot(steps, values.T, color=colour, alpha=0.4, lw=0.8)
        axis.plot(steps, np.median(values, axis=0), color=colour, lw=2, label=f"{name}, median")
    axis.set(yscale="log", xlabel="steps of the minimiser", ylabel="relative error of the sensitivities")
    axis.legend(fontsize="small")
    return figure


def packing(
    positions: Float[np.ndarray, "discs 2"],
    moves: Float[np.ndarray, "discs 2"],
    diameters: Float[np.ndarray, " discs"],
    side: float,
) -> Figure:
    """The discs, and where they move when the smaller ones grow."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axis = figure.subplots()
    inside = positions % side
    for centre, diameter in zip(inside, diameters, strict=True):
        axis.add_patch(Circle(tuple(centre), diameter / 2, alpha=0.3, color="C0" if diameter == 1 else "C1", lw=0))
    axis.quiver(*inside.T, *moves.T, angles="xy")
    axis.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[])
    return figure
