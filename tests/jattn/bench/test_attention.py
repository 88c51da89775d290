"""The rows of `jattn bench attention`: which way a bar is read, and that every row can be made."""

import numpy as np
import pytest

from jattn.bench import attention
from jattn.bench.attention import Bound


@pytest.mark.parametrize(
    ("bound", "ratios", "held"),
    [
        (Bound(0.9, at_least=True), [0.8, 0.95, 1.2], "yes"),
        (Bound(0.9, at_least=True), [0.8, 0.85, 1.2], "NO"),
        (Bound(4.0), [3.9, 3.95, 9.0], "yes"),
        (Bound(4.0), [1.0, 4.05, 9.0], "NO"),
    ],
)
def test_the_median_is_judged(bound: Bound, ratios: list[float], held: str) -> None:
    assert bound.row("this", "that", np.array(ratios), "")["held"] == held


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In small: the numbers mean nothing, but every program compiles, runs and is compared."""
    monkeypatch.setattr(attention, "LENGTHS", (32, 64, 128, 256))
    monkeypatch.setattr(attention, "MIDDLE", 64)
    monkeypatch.setattr(attention, "ROUNDS", 1)
    monkeypatch.setattr(attention, "WINDOW", 32)
    rows = [*attention._against_jax(), *attention._against_itself(), *attention._windows()]
    assert len(rows) == 2 + 6 + 2
    assert all(list(row) == ["what", "against", "ratio", "bar", "held", "medians"] for row in rows)
