"""The experiment's settings and presets."""

from dataclasses import dataclass, field, replace

from jattn.runs import Preset

PARTS = ("constructed", "pretrained")
FIRST = 6
"""How many of the best heads are looked at one by one."""
COMPARED = 30
"""How many of the best heads are compared between halves; all others are said not to matter."""


@dataclass(frozen=True)
class Pretrained:
    """A published model and how it is searched.

    Attributes:
      model: its name, of `jattn weights`.
      searched: prompts of each task that find heads; halves of them tell whether these are stable.
      held_out_names, held_out_colours: prompts that no head was found by, for the circuit alone and for the repair.
      share: of all heads, how many are called a task's heads.
      random: sets of random heads, for each control.
      batch: prompts that are run together; what moves queries, and other twins, are of the first of them.
      at_once: senders that are run together.
    """

    model: str = "smollm2-135m"
    searched: int = 50
    held_out_names: int = 50
    held_out_colours: int = 200
    share: float = 0.05
    random: int = 5
    batch: int = 25
    at_once: int = 27


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      parts: which are run.
      problems: of the network whose weights are set by hand.
      seed: what all randomness starts from.
    """

    parts: tuple[str, ...] = PARTS
    pretrained: Pretrained = field(default_factory=Pretrained)
    problems: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"parts must be among {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
        if self.pretrained.searched < 4 or self.pretrained.searched % 2:
            raise ValueError(f"searched must be even and at least 4; got {self.pretrained.searched}")


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(replace(LAPTOP, parts=("constructed",)), "seconds; without the published model"),
    "laptop": Preset(LAPTOP, "about ten minutes of CPU time; jattn weights fetch smollm2-135m first"),
    "paper": Preset(
        replace(
            LAPTOP,
            pretrained=replace(LAPTOP.pretrained, searched=1000, held_out_names=1000, held_out_colours=1000),
        ),
        "1,000 prompts of each task, as in the paper, though of the same small model; an accelerator",
    ),
}
