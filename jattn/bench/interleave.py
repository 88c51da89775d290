"""Fair timing on a machine that others use too."""

from collections.abc import Callable, Mapping

import numpy as np


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """What every contender measured in every round (seconds, say), called in turn after one warm-up each.

    The order is reversed every other round. A ratio is to be taken round by round, so that a slow spell of the
    machine falls on both sides.

    Raises:
      ValueError: rounds below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; got {rounds}")
    for measure in contenders.values():
        measure()
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in list(contenders) if turn % 2 == 0 else reversed(list(contenders)):
            measured[name].append(contenders[name]())
    return {name: np.array(values) for name, values in measured.items()}
