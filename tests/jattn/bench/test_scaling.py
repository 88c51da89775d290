"""Exponents, their intervals, and the length from which one mechanism is faster than another."""

import math
from pathlib import Path

import numpy as np
import pytest

from jattn.bench import scaling
from jattn.bench.scaling import Measured, Mechanism, fit, overtakes

LENGTHS = (512, 1024, 2048, 4096, 8192)


def power(coefficient: float, exponent: float, lengths: tuple[int, ...] = LENGTHS) -> Measured:
    return Measured(lengths, coefficient * np.array(lengths, float) ** exponent, np.ones(len(lengths)))


def test_exponent_of_a_power_law_and_of_noise() -> None:
    found = fit(LENGTHS, power(3e-6, 1.5).seconds)
    np.testing.assert_allclose([found.exponent, found.low, found.high], 1.5, rtol=1e-9)
    noisy = power(3e-6, 2.0).seconds * np.exp(np.random.default_rng(0).normal(0, 0.1, len(LENGTHS)))
    found = fit(LENGTHS, noisy)
    assert found.low < 2.0 < found.high
    assert found.high - found.low > 0.05
    with pytest.raises(ValueError, match="lengths must be at least two"):
        fit((512,), np.array([1.0]))


def test_where_one_overtakes_another() -> None:
    # 10⁻⁴ n < 10⁻⁷ n² from 1000 on.
    np.testing.assert_allclose(overtakes(power(1e-4, 1.0), power(1e-7, 2.0)), 1000, rtol=1e-6)
    assert overtakes(power(1.0, 1.0), power(1e-7, 2.0)) == math.inf
    assert overtakes(power(1e-6, 1.0), power(1.0, 2.0)) == 0
    # Beyond where the other was measured, by its fit.
    np.testing.assert_allclose(overtakes(power(6e-4, 1.0), power(1e-7, 2.0, LENGTHS[:4])), 6000, rtol=1e-6)


def test_time_a_token_has_a_bar_of_its_own() -> None:
    """Twice as slow a token at one length, whatever the exponent is."""
    program = scaling.MECHANISMS[0].program
    uneven = Measured((4, 8, 16), np.array([4.0, 16.0, 16.0]), np.ones(3))
    for flat, want in ((None, "2.00"), (2.0, "2.00, bar 2: yes"), (1.9, "2.00, bar 1.9: NO")):
        found = scaling.row(Mechanism("one", program, flat=flat), False, uneven, uneven)
        assert found["most over least time a token"] == want


def test_table_and_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In small: the numbers mean nothing."""
    monkeypatch.setattr(scaling, "MECHANISMS", (scaling.MECHANISMS[0], scaling.MECHANISMS[2]))
    monkeypatch.setattr(scaling, "LENGTHS", (64, 128))
    monkeypatch.setattr(scaling, "rounds", lambda seconds: 1)
    monkeypatch.setattr(scaling, "FIGURE", tmp_path / "scaling.png")
    monkeypatch.setattr(scaling, "pin_to_one_core", lambda: None)
    rows = scaling.measure_scaling()
    assert [row["mechanism"] for row in rows] == 2 * [mechanism.name for mechanism in scaling.MECHANISMS]
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_a_mechanism_that_takes_too_long_is_measured_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LENGTHS", (8, 16))
    monkeypatch.setattr(scaling, "LONGEST_CALL", 0.0)
    found = scaling.measure(Mechanism("identity", lambda length: lambda query, key, value: query + key), False)
    assert found.lengths == (8,)
