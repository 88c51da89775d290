"""The experiment's figures."""

from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.in_context_regression import theory
from experiments.in_context_regression.claims import PAPER_ERRORS, trajectory
from experiments.in_context_regression.config import Config
from experiments.in_context_regression.measure import PerSeed
from experiments.in_context_regression.model import arm_names
from jattn.runs import Run

COLOURS: dict[str, Any] = dict(
    zip(
        ("heads_1", "heads_2", "heads_3", "heads_4", "heads_6", "heads_8", "linear"),
        mpl.colormaps["tab10"].colors,  # pyright: ignore[reportAttributeAccessIssue]
        strict=False,
    )
)
SNAPSHOTS = 5


def label(arm: str) -> str:
    """heads_2 -> 2 heads."""
    if arm == "linear":
        return "linear attention"
    heads = arm.removeprefix("heads_")
    return f"{heads} head{'s' if heads != '1' else ''}"


def circuits_through_training(run: Run, config: Config, arm: str) -> Figure:
    """Key-query and output-value matrices of the first seed at evenly chosen evaluations."""
    history = run.history("train")
    steps, key_query = history[f"eval/{arm}/key_query"]
    output_value = history[f"eval/{arm}/output_value"][1]
    chosen = np.unique(np.r_[0, np.geomspace(1, len(steps) - 1, SNAPSHOTS - 1).round().astype(int)])
    heads = key_query.shape[2]
    figure = Figure(figsize=(2.0 * len(chosen) + 0.8, 2.7 * heads), layout="constrained")
    axes = figure.subplots(2 * heads, len(chosen), squeeze=False, height_ratios=[3, 1] * heads)
    for column, at in enumerate(chosen):
        for head in range(heads):
            for row, matrix, name in (
                (2 * head, key_query[at, 0, head], f"key-query {head + 1}"),
                (2 * head + 1, output_value[at, 0, head], f"output-value {head + 1}"),
            ):
                axis, reach = axes[row, column], np.abs(matrix).max()
                image = axis.imshow(matrix, cmap="RdBu_r", vmin=-reach, vmax=reach)
                axis.set(xticks=[], yticks=[], ylabel=name if column == 0 else "")
                figure.colorbar(image, ax=axis, shrink=0.8, ticks=[-reach, reach], format="%.2g")
        axes[0, column].set_title(f"step {steps[at]:,}")
    return figure


def loss_curves(run: Run, config: Config, errors: dict[str, PerSeed]) -> Figure:
    """Validation error through training, mean and range over seeds, with the closed forms as levels."""
    history = run.history("train")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for arm in arm_names(config):
        steps, values = history[f"eval/{arm}"]
        axis.plot(steps, values.mean(axis=1), color=COLOURS.get(arm), label=label(arm))
        axis.fill_between(steps, values.min(axis=1), values.max(axis=1), color=COLOURS.get(arm), alpha=0.2, lw=0)
    levels = {"debiased gradient descent": "--", "Bayes": ":"}
    if config.covariate_correlation:
        levels["preconditioned"] = "-."
    for name, style in levels.items():
        axis.axhline(errors[name].mean(), color="black", ls=style, lw=1, label=name)
    axis.set(xlabel="step", ylabel="mean squared error", yscale="log")
    axis.legend(fontsize="small", ncols=2)
    return figure


def error_against_length(config: Config, errors: dict[int, dict[str, PerSeed]]) -> Figure:
    """Error at context lengths the models were not trained at; bars are the range over seeds."""
    lengths = sorted(errors)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for arm in arm_names(config):
        values = np.array([errors[length][arm] for length in lengths])
        mean = values.mean(axis=1)
        spread = np.abs(np.array([values.min(axis=1), values.max(axis=1)]) - mean)
        axis.errorbar(lengths, mean, spread, marker="o", ms=3, capsize=2, color=COLOURS.get(arm), label=label(arm))
    for name, style in (("debiased gradient descent", "--"), ("gradient descent", "-."), ("Bayes", ":")):
        axis.plot(lengths, [errors[n][name].mean() for n in lengths], color="black", ls=style, lw=1, label=name)
    if len(config.tasks) == 1 and not config.covariate_correlation:
        axis.plot(*zip(*PAPER_ERRORS.items(), strict=True), "k*", ms=9, mfc="none", ls="", label="paper, 2 heads")
    axis.axvline(config.context_length, color="grey", lw=0.8)
    axis.annotate("trained here", (config.context_length, 1), xycoords=("data", "axes fraction"),
                  xytext=(3, -12), textcoords="offset points", color="grey", fontsize="small")  # fmt: skip
    axis.set(xlabel="labelled examples in the prompt", ylabel="mean squared error", xscale="log", yscale="log")
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.minorticks_off()
    axis.legend(fontsize="small", ncols=2)
    return figure


def dynamics(run: Run, config: Config) -> Figure:
    """Two heads in the (ω, μ) plane, every seed, with the valley and the gradient flow of the approximate loss.

    The flow starts where training stands once its heads have opposite signs and is compared as a path: Adam's
    clock is not the flow's.
    """
    world = config.world(config.context_length)
    steps, (omega, mu) = trajectory(run, "heads_2")
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    plane, clock = figure.subplots(1, 2)
    for seed in range(omega.shape[1]):
        plane.plot(omega[:, seed], mu[:, seed], color=f"C{seed}", lw=1.2, alpha=0.8)
        clock.plot(steps, np.abs(omega[:, seed]).mean(axis=1), color=f"C{seed}", label=f"seed {seed}")
        opposed = np.flatnonzero((omega[:, seed].prod(axis=1) < 0) & ((omega * mu)[:, seed] > 0).all(axis=1))
        if opposed.size:
            start = opposed[0]
            flow = theory.gradient_flow(
                jnp.float32(omega[start, seed]), jnp.float32(mu[start, seed]), world, time=200.0, points=100
            )
            plane.plot(*map(np.asarray, flow), color=f"C{seed}", ls=":", lw=2)
    strength = np.linspace(0.02, max(0.6, float(np.abs(omega).max())), 200)
    valley = np.asarray(theory.valley_rate(strength, world)) / (2 * strength)
    reach = 1.2 * float(np.abs(mu).max()) + 0.1
    for sign in (-1, 1):
        plane.plot(sign * strength, sign * valley, color="grey", lw=4, alpha=0.3, zorder=0)
    plane.set(xlabel="ω", ylabel="μ", ylim=(-reach, reach), title="training (solid), flow (dotted), valley (grey)")
    clock.set(xlabel="step", ylabel="mean |ω| of the two heads", title="overshoot and decay")
    clock.legend(fontsize="small")
    return figure


def real_error_against_length(errors: dict[int, dict[str, np.ndarray]], arm: str) -> Figure:
    """The diabetes table: error on held-out rows against the number of patients in the context."""
    lengths = sorted(errors)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    series: dict[str, dict[str, Any]] = {
        arm: {"color": "C1", "lw": 2, "label": f"{label(arm)}, trained on synthetic prompts only"},
        "ridge": {"color": "black", "ls": ":", "label": "ridge (leave-one-out penalty)"},
        "ordinary least squares": {"color": "black", "ls": "--", "label": "ordinary least squares"},
        "constant": {"color": "grey", "label": "constant"},
    }
    for name, style in series.items():
        values = np.array([errors[length][name] for length in lengths])
        half = 1.96 * values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
        axis.errorbar(lengths, values.mean(axis=1), half, marker="o", ms=3, capsize=2, **style)
    axis.set(xlabel="patients in the context", ylabel="squared error / variance", xscale="log", ylim=(0, 2))
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.minorticks_off()
    axis.legend(fontsize="small")
    return figure
