"""The experiment's settings and presets."""

from dataclasses import dataclass, replace

from jattn.runs import Preset


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      model: its name, of `jattn weights`; None: a small one with random weights, which reads random tokens.
      length: tokens of a prompt.
      calibration, test: prompts that heads are chosen by, and that they are tested on.
      layers: the first layer that is calibrated, and the first behind them that is not.
      middle: the same of the layers where sinks are expected.
      threshold: mean weight above which a key is a sink.
      relative: the same as a multiple of 1 / length, for the profile of layers alone.
      factor: on weights of sinks; `amplified`: in a control.
      random: sets of random heads; `columns`: draws of random keys; `shuffles`: of labels that heads are chosen by.
      at_once: prompts in one batch.
      seed: what all randomness starts from.
    """

    model: str | None = "smollm2-135m"
    length: int = 40
    calibration: int = 60
    test: int = 160
    layers: tuple[int, int] = (3, 9)
    middle: tuple[int, int] = (3, 11)
    threshold: float = 0.1
    relative: float = 5.0
    factor: float = 0.4
    amplified: float = 1.6
    random: int = 3
    columns: int = 2
    shuffles: int = 1
    at_once: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("calibration", "test"):
            if getattr(self, name) < 4 or getattr(self, name) % 4:
                raise ValueError(f"{name} must be a multiple of 4; got {getattr(self, name)}")
        for name in ("layers", "middle"):
            first, behind = getattr(self, name)
            if not 0 <= first < behind:
                raise ValueError(f"{name} must be a layer and one behind it; got {getattr(self, name)}")
        for name in ("random", "columns"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, as one is held against the others")
        if self.shuffles < 1:
            raise ValueError(f"shuffles must be at least 1; got {self.shuffles}")


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        replace(
            LAPTOP, model=None, length=12, calibration=16, test=16, layers=(0, 2), middle=(0, 1), random=2, at_once=8
        ),
        "half a minute on two cores; without the published model",
    ),
    "laptop": Preset(LAPTOP, "about a quarter of an hour of CPU time; jattn weights fetch smollm2-135m first"),
    "paper": Preset(
        replace(LAPTOP, length=128, calibration=1000, test=1000, layers=(2, 29), random=10, columns=10, shuffles=10),
        "every layer but the first two and the last, a thousand prompts; an accelerator",
    ),
}
