"""Rows of a benchmark's table: a ratio, its bar, and whether it is within it."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

log = logging.getLogger("jattn")


@dataclass(frozen=True)
class Bound:
    """What a ratio should be at least, or at most."""

    limit: float
    at_least: bool = False

    def row(self, what: str, against: str, ratios: np.ndarray, detail: str) -> dict[str, Any]:
        """A line of the table: the median ratio with its range, and whether the median is within the bound."""
        middle = float(np.median(ratios))
        held = middle >= self.limit if self.at_least else middle <= self.limit
        return {
            "what": what,
            "against": against,
            "ratio": f"{middle:.3g} [{ratios.min():.3g}, {ratios.max():.3g}]" if len(ratios) > 1 else f"{middle:.3g}",
            "bar": f"{'≥' if self.at_least else '≤'} {self.limit:g}",
            "held": "yes" if held else "NO",
            "medians": detail,
        }


def medians(seconds: Mapping[str, np.ndarray]) -> str:
    """Each contender's median, in words."""
    return ", ".join(f"{name} {np.median(values):.3g} s" for name, values in seconds.items())


def logged(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each told as soon as it is measured."""
    told = []
    for row in rows:
        log.info("%s against %s: %s (%s)", row["what"], row["against"], row["ratio"], row["medians"])
        told.append(row)
    return told
