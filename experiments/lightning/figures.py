"""The experiment's figures."""

import numpy as np
from matplotlib.figure import Figure

from experiments.lightning.config import Config
from experiments.lightning.measure import Seconds


def time_per_token(config: Config, together: Seconds, alone: Seconds) -> Figure:
    """Time against length: of a fixed number of tokens, and of one sequence."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    lengths = np.array(config.timed_lengths)
    left, right = figure.subplots(1, 2)
    for name in together:
        left.loglog(lengths, np.median(together[name], axis=0) / config.timed_tokens * 1e6, marker="o", label=name)
        right.loglog(lengths, np.median(alone[name], axis=0), marker="o", label=name)
    left.set(xlabel="length", ylabel="µs of CPU a token", title=f"{config.timed_tokens} tokens in all")
    right.set(xlabel="length", ylabel="seconds of CPU", title="one sequence")
    left.legend()
    return figure
