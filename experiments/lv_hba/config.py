"""The experiment's settings and presets."""

from dataclasses import dataclass, replace

from jattn.runs import Preset

CHECKED = (200, 1000, 5000, 20_000)
"""Iterations of the toy after which its error is held against a bar."""
SAMPLES = 569
"""Of the breast-cancer data."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      sizes: outer variables of the toy, in one run each.
      toy_steps: iterations of the toy.
      record_every: iterations between records of the toy; divides every number of `CHECKED`.
      penalty: of the toy where it is constant; twice as large in a second run.
      training, validation: samples of the support vector machine; the rest is for testing.
      steps: iterations of the support vector machine.
      stretch: by which its outer variables are divided, so that they move further.
      seeds: its splits.
      seed: what all randomness starts from.
    """

    sizes: tuple[int, ...] = (100, 300, 1000, 10_000)
    toy_steps: int = 20_000
    record_every: int = 200
    penalty: float = 10.0
    training: int = 300
    validation: int = 130
    steps: int = 10_000
    stretch: float = 30.0
    seeds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("toy_steps", "training", "validation", "steps", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be at least one number from 1; got {self.sizes}")
        if self.record_every < 1 or any(steps % self.record_every for steps in (*CHECKED, self.toy_steps)):
            raise ValueError(f"record_every must divide {CHECKED} and {self.toy_steps}; got {self.record_every}")
        if self.steps % 20:
            raise ValueError(f"steps must be a multiple of 20, the records of a run; got {self.steps}")
        if self.training + self.validation >= SAMPLES:
            raise ValueError(
                f"training and validation must leave some of {SAMPLES} samples; "
                f"got {self.training} and {self.validation}"
            )
        for name in ("penalty", "stretch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        replace(LAPTOP, sizes=(3, 5), toy_steps=1000, training=30, validation=20, steps=40, seeds=2),
        "half a minute on two cores, nearly all of it compilation",
    ),
    "laptop": Preset(LAPTOP, "about a minute on two cores"),
    "paper": Preset(
        replace(LAPTOP, sizes=(100, 1000, 100_000), toy_steps=100_000, steps=100_000, seeds=40),
        "forty splits, ten times the iterations, toys of up to 100,000 outer variables",
    ),
}
