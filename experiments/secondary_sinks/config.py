"""The experiment's settings and presets."""

from dataclasses import dataclass, replace

from jattn.runs import Preset

PARTS = ("pretrained", "planted", "removal")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      model: a name of `jattn weights`; None: the decoder whose weights are set by hand.
      parts: which are run.
      of_a_kind: texts of each of the four kinds.
      length: tokens of a text.
      at_once: texts in one batch.
      unread: tokens at the end of each text whose scores are not looked at, as few queries may read them.
      steered: how many sinks are.
      scales: factors on what a feed-forward layer adds to them, 1 apart.
      edited: texts of the parts `planted` and `removal`.
      planted: tokens of a text that are made sinks, at most.
      strengths: norms of what is planted, as shares of the primary sink's; 0 apart.
      seed: what all randomness starts from.
    """

    model: str | None = "smollm2-135m"
    parts: tuple[str, ...] = PARTS
    of_a_kind: int = 10
    length: int = 256
    at_once: int = 8
    unread: int = 32
    steered: int = 20
    scales: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 2.0, 4.0)
    edited: int = 20
    planted: int = 8
    strengths: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"parts must be among {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
        if 1.0 not in self.strengths:
            raise ValueError(f"strengths must have 1, which claims are about; got {self.strengths}")
        if not {0.5, 4.0} <= set(self.scales) or 1.0 in self.scales:
            raise ValueError(
                f"scales must have 0.5 and 4, which claims are about, and not 1, which is no change; got {self.scales}"
            )


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        replace(LAPTOP, model=None, of_a_kind=2, length=48, unread=8, steered=4, edited=4, planted=4),
        "half a minute on two cores; without the published model",
    ),
    "laptop": Preset(LAPTOP, "13 minutes of CPU time; jattn weights fetch smollm2-135m first"),
    "paper": Preset(
        replace(LAPTOP, of_a_kind=75, length=2048, unread=256, steered=200, edited=100),
        "300 texts of 2,048 tokens, as many as the released files have samples; an accelerator",
    ),
}
