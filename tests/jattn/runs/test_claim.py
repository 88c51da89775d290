"""Claims hold exactly when they should, and never because something is not a number."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from jattn.runs.claim import Bar, Claim, estimate, judge

NUMBERS = st.floats(-1e6, 1e6)
REPETITIONS = st.lists(NUMBERS, min_size=1, max_size=8)


def claim(bar: Bar) -> Claim:
    return Claim("name", "statement", "figure", bar, "control")


@st.composite
def bars(draw) -> Bar:
    low, high = sorted((draw(NUMBERS | st.just(-math.inf)), draw(NUMBERS | st.just(math.inf))))
    return Bar(low, high)


def students_interval(values: list[float]) -> tuple[float, float]:
    """By scipy's own interval, from the textbook's mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return stats.t.interval(0.95, len(values) - 1, loc=statistics.fmean(values), scale=error)


@settings(deadline=None)
@given(st.lists(st.integers(-(10**9), 10**9).map(lambda n: n / 1000), min_size=2, max_size=8))
def test_the_interval_is_students(values):
    got = estimate(values)
    assume(statistics.stdev(values) > 1e-9 * max(map(abs, values)))  # below, both are rounding
    low, high = students_interval(values)
    scale = max(map(abs, values))
    assert got.repetitions == len(values)
    assert got.mean == pytest.approx(statistics.fmean(values), rel=1e-12, abs=1e-12 * scale)
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9 * scale)


def test_the_interval_by_the_table():
    # t(0.975, 4 degrees of freedom) = 2.776 in every table; mean 3, standard deviation √2.5.
    got = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert (got.mean, got.low, got.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-6)


@settings(deadline=None)
@given(NUMBERS)
def test_one_repetition_is_a_point(value):
    got = estimate(value)
    assert (got.mean, got.low, got.high, got.repetitions) == (value, value, value, 1)
    assert got == estimate([value]) == estimate(np.array([value]))


@settings(deadline=None)
@given(bars(), REPETITIONS, REPETITIONS)
@example(Bar(high=1.0), [1.0], [1.0 + 1e-9])  # the bar itself is inside
@example(Bar(low=1.0), [1.0], [0.5, 0.6, 0.7])
@example(Bar(low=0.0, high=1.0), [0.4, 0.5], [0.5, 7.0])  # one control passes
@example(Bar(low=0.0, high=1.0), [0.1, 0.9], [7.0])  # the interval is wider than the values
@example(Bar(), [0.0], [0.0])
def test_a_claim_holds_iff_the_interval_is_inside_and_no_control_is(bar, measured, control):
    verdict = judge(claim(bar), measured, control)
    seen = estimate(measured)
    inside = bar.low <= seen.low and seen.high <= bar.high
    outside = all(value < bar.low or value > bar.high for value in control)
    assert verdict.held == (inside and outside)
    assert bool(verdict.reason) != verdict.held
    assert verdict.measured == seen
    assert verdict.control == estimate(control)


@settings(deadline=None)
@given(REPETITIONS, st.data())
def test_both_outcomes_are_reached(measured, data):
    """A bar around the interval and a control beyond it: held; the same control inside: not held."""
    seen = estimate(measured)
    bar = Bar(seen.low - 1, seen.high + 1)
    beyond = data.draw(st.lists(st.floats(bar.high + 1, 1e9), min_size=1, max_size=5))
    assert judge(claim(bar), measured, beyond).held
    among = [*beyond, data.draw(st.floats(bar.low, bar.high))]
    verdict = judge(claim(bar), measured, among)
    assert not verdict.held
    assert f"passes in 1 of {len(among)} repetitions" in verdict.reason
    narrower = Bar(seen.mean, bar.high)
    assume(seen.low < seen.mean)
    assert "crosses" in judge(claim(narrower), measured, beyond).reason
    assert "misses" in judge(claim(Bar(bar.high, bar.high + 1)), measured, [bar.high + 9]).reason


@settings(deadline=None)
@given(bars(), REPETITIONS, REPETITIONS, st.integers(0, 7), st.booleans())
def test_not_a_number_never_holds(bar, measured, control, where, in_the_control):
    spoiled = control if in_the_control else measured
    spoiled[where % len(spoiled)] = math.nan
    verdict = judge(claim(bar), measured, control)
    assert not verdict.held
    assert verdict.reason


@settings(deadline=None)
@given(bars(), REPETITIONS, st.sampled_from([math.inf, -math.inf]))
def test_a_measurement_that_is_infinite_never_holds(bar, measured, infinity):
    assert not judge(claim(bar), [*measured, infinity], [bar.low - 1.0]).held


def test_why_it_does_not_hold_is_printed_only_when_it_does_not():
    assert judge(claim(Bar(high=1.0)), 2.0, 3.0, "too few steps").reason.endswith("; too few steps")
    assert judge(claim(Bar(high=1.0)), 0.5, 3.0, "too few steps").reason == ""


def test_what_the_run_found_is_told_only_of_a_claim_that_does_not_hold():
    assert judge(claim(Bar(high=1.0)), 2.0, 3.0, "too few steps").reason.endswith("; too few steps")
    assert judge(claim(Bar(high=1.0)), 0.5, 3.0, "too few steps").reason == ""


@pytest.mark.parametrize("values", [[], np.zeros((2, 2))])
def test_repetitions_are_one_number_each(values):
    with pytest.raises((ValueError, TypeError)):
        estimate(values)


def test_a_bar_is_the_right_way_round():
    with pytest.raises(ValueError, match=r"low must not exceed high; got \[2.0, 1.0\]"):
        Bar(2.0, 1.0)
    with pytest.raises(ValueError, match="low must not exceed high"):
        Bar(math.nan, 1.0)


def test_how_bars_and_estimates_read():
    assert [str(Bar(high=0.5)), str(Bar(low=2.0)), str(Bar(0.25, 1.0))] == ["≤ 0.5", "≥ 2", "0.25 to 1"]
    assert str(estimate(0.123456)) == "0.1235"
    assert str(estimate([1.0, 1.0])) == "1 [1, 1]"
