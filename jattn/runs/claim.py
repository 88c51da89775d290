"""Claims: what a paper says, the bar set before looking, the measurement, its control, and whether it held."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclass(frozen=True)
class Bar:
    """The closed interval a quantity must lie in for a claim to hold."""

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low must not exceed high; got [{self.low}, {self.high}]")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"≤ {self.high:g}"
        if math.isinf(self.high):
            return f"≥ {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Claim:
    """One checkable statement, fixed in the code before anything is run.

    Attributes:
      name: short, unique in its experiment.
      statement: what is claimed, in words that name the measured quantity.
      paper: the paper's own figure, as it gives it.
      bar: where the measured quantity must lie.
      control: what is measured the same way although the claim must fail for it.
    """

    name: str
    statement: str
    paper: str
    bar: Bar
    control: str


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions and its two-sided 95 % Student interval (a point when there is one repetition)."""

    mean: float
    low: float
    high: float
    repetitions: int

    def __str__(self) -> str:
        if self.repetitions == 1:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Verdict:
    """A claim with what was measured. `held` is decided by `judge` and nowhere else."""

    claim: Claim
    measured: Estimate
    control: Estimate
    held: bool
    reason: str


def estimate(values: Float[np.ndarray, " repetitions"] | Sequence[float] | float) -> Estimate:
    """Mean and 95 % interval of repeated measurements. Not-a-number anywhere makes the interval unbounded."""
    array = np.atleast_1d(np.asarray(values, np.float64))
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"values must be one number per repetition; got shape {array.shape}")
    if not np.isfinite(array).all():
        return Estimate(math.nan, -math.inf, math.inf, array.size)
    mean = float(array.mean())
    if array.size == 1:
        return Estimate(mean, mean, mean, 1)
    half = float(stats.t.ppf(0.975, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return Estimate(mean, mean - half, mean + half, array.size)


def judge(
    claim: Claim,
    measured: Float[np.ndarray, " repetitions"] | Sequence[float] | float,
    control: Float[np.ndarray, " control_repetitions"] | Sequence[float] | float,
    finding: str = "",
) -> Verdict:
    """A claim holds when the measurement's whole interval is inside the bar and no repetition of the control is.

    `finding` is what the run knows of why a claim may not hold; it is kept with the reason when the claim does not.
    The control is judged repetition by repetition because nothing is known of its distribution: untrained weights
    give ratios whose mean and interval mean little.
    """
    seen, null = estimate(measured), estimate(control)
    inside = seen.low in claim.bar and seen.high in claim.bar
    controls = np.atleast_1d(np.asarray(control, np.float64))
    passing = sum(float(value) in claim.bar for value in controls)
    if math.isnan(seen.mean):
        reason = "the measurement is not a number in some repetition"
    elif not inside:
        reason = "the interval crosses the bar" if seen.mean in claim.bar else "the measurement misses the bar"
    elif passing:
        reason = f"the control passes in {passing} of {null.repetitions} repetitions, so the measurement shows nothing"
    elif np.isnan(controls).any():
        reason = "the control is not a number in some repetition, so the measurement shows nothing"
    else:
        reason = ""
    if reason and finding:
        reason = f"{reason}; {finding}"
    return Verdict(claim, seen, null, not reason, reason)
