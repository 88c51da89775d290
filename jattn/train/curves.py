"""The figure that every comparison of arms has: an evaluation through training."""

from collections.abc import Iterable

from matplotlib.figure import Figure

from jattn.runs.directory import Run


def curves_through_training(run: Run, arms: Iterable[str], metric: str, label: str) -> Figure:
    """A metric of each arm's evaluations, mean and range over seeds. The scale leaves out the untrained model."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    highest = []
    for arm in arms:
        steps, values = run.history(arm)[f"eval/{metric}"]
        (line,) = axis.plot(steps, values.mean(axis=1), label=arm.replace("_", " "))
        axis.fill_between(steps, values.min(axis=1), values.max(axis=1), color=line.get_color(), alpha=0.2, lw=0)
        highest.append(float(values[1:].max()))
    axis.set(xlabel="step", ylabel=label, ylim=(None, max(highest) + 0.1))
    axis.legend(fontsize="small")
    return figure
