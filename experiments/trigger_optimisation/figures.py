"""The experiment's figures, and its tables as text."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.trigger_optimisation.defences import Examined


def success_of_arms(success: dict[str, dict[str, Float[np.ndarray, " seeds"]]]) -> Figure:
    """Success by arm and method: every seed, and the mean."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axis = figure.subplots()
    methods = list(dict.fromkeys(method for each in success.values() for method in each))
    for index, method in enumerate(methods):
        arms = [place for place, each in enumerate(success.values()) if method in each]
        values = [each[method] for each in success.values() if method in each]
        places = np.array(arms) + 0.2 * (index - (len(methods) - 1) / 2)
        axis.bar(places, [each.mean() for each in values], 0.18, label=method, alpha=0.6)
        for place, each in zip(places, values, strict=True):
            axis.plot(np.full(len(each), place), each, "k.", ms=3)
    axis.set_xticks(range(len(success)), [arm.replace("_", "\n") for arm in success], fontsize="small")
    axis.set(ylabel="triggered images taken for the target", ylim=(0, 1))
    axis.legend(fontsize="small")
    return figure


COLUMNS = {
    "success": ("none", "success"),
    "probe of\npoisoned images": ("labelled_poison", "success"),
    "fine-tuned": ("tuned", "success"),
    "pruned": ("pruned", "success"),
    "accuracy": ("none", "accuracy"),
    "accuracy,\nfine-tuned": ("tuned", "accuracy"),
    "accuracy,\npruned": ("pruned", "accuracy"),
}
"""Of the table of attacks and defences: the defence, and the share that is told."""
HEADINGS = (*COLUMNS, "spectral\nROC area", "silhouette,\nexcess")


def attacks_and_defences(
    examined: dict[str, dict[str, list[Examined]]],
) -> tuple[list[str], Float[np.ndarray, "rows 9"]]:
    """A row for each arm and method: the attack, what is left of it after each defence, and what detectors see.

    Returns:
      Names of rows, and means over seeds, as `HEADINGS` has them.
    """
    names, rows = [], []
    for arm, by in examined.items():
        for method, found in by.items():
            shares = [[getattr(getattr(each, defence), share) for each in found] for defence, share in COLUMNS.values()]
            seen = [[each.spectral for each in found], [each.silhouette for each in found]]
            names.append(f"{arm.replace('_', ' ')}, {method}")
            rows.append(np.mean(shares + seen, axis=1))
    return names, np.array(rows)


def table_of_defences(names: list[str], rows: Float[np.ndarray, "rows 9"]) -> Figure:
    """The table of `attacks_and_defences`, the more success the redder."""
    figure = Figure(figsize=(11, 0.32 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.axis("off")
    colours = np.ones((*rows.shape, 4))
    colours[:, :4, 1:3] = 1 - 0.7 * np.clip(rows[:, :4, None], 0, 1)
    told = [[f"{value:.3f}" for value in row] for row in rows]
    cells: Any = colours.tolist()
    table = axis.table(told, cellColours=cells, rowLabels=names, colLabels=HEADINGS, loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (line, _), cell in table.get_celld().items():
        cell.set_height(2.2 / (len(names) + 2.2) if line == 0 else 1 / (len(names) + 2.2))
    return figure


def objective_by_round(similarities: dict[str, Float[np.ndarray, "rounds seeds"]], period: int) -> Figure:
    """The outer objective by round, with the rounds where surrogates begin anew."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    names = {"before": "before outer steps", "after": "after", "untrained": "untrained generator"}
    rounds = np.arange(1, len(similarities["before"]) + 1)
    for name, label in names.items():
        values = similarities[name]
        (line,) = axis.plot(rounds, values.mean(axis=1), label=label)
        axis.fill_between(rounds, values.min(axis=1), values.max(axis=1), color=line.get_color(), alpha=0.2, lw=0)
    for start in range(period, len(rounds), period):
        axis.axvline(start + 0.5, color="0.7", lw=0.8)
    axis.set(xlabel="round", ylabel="S, cosine to the target class")
    axis.legend(fontsize="small")
    return figure


def features_through_training(
    histories: dict[str, dict[str, Float[np.ndarray, "seeds records 2"]]], steps: int
) -> Figure:
    """Alignment, uniformity and distance to the target of clean (dashed) and triggered images, by arm."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    titles = {"alignment": "E ‖u - u'‖²", "uniformity": "log E exp(-2‖u - u'‖²)", "distance": "E ‖u - target‖²"}
    for axis, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for arm, history in histories.items():
            values = history[name].mean(axis=0)
            at = steps * np.arange(1, len(values) + 1) / len(values)
            (line,) = axis.plot(at, values[:, 1], label=arm.replace("_", " "))
            axis.plot(at, values[:, 0], "--", color=line.get_color(), lw=0.8)
        axis.set(xlabel="step", title=title)
    figure.axes[0].legend(fontsize="x-small")
    return figure


def images_with_triggers(rows: dict[str, Float[np.ndarray, "count side side channels"]]) -> Figure:
    """A row of the same images for every arm."""
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.0 * count + 1, 1.0 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.replace("_", "\n"), fontsize="x-small")
    return figure
