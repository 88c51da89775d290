"""The experiment's settings and presets."""

from dataclasses import dataclass, field, replace

import optax

from jattn.interpret.edit import HeadMode
from jattn.runs import Preset
from jattn.train import Schedule, adamw_with_warm_up

PARTS = ("constructed", "trained", "pretrained")
MODES: tuple[HeadMode, ...] = ("zero", "uniform")
CLAIMED = 10
"""How many heads are switched off where claims are judged."""


@dataclass(frozen=True)
class Trained:
    """A small decoder that learns to copy.

    Attributes:
      vocabulary: tokens, all alike.
      length: of the tokens that are there to be copied.
      copied: tokens of an answer.
      asked: questions behind them in training, each answered; heads are scored by texts with one.
      steps, batch_size, learning_rate: of training; in one program are `dispatch` steps.
      tested: prompts that heads are scored by.
    """

    vocabulary: int = 64
    length: int = 48
    copied: int = 6
    asked: int = 8
    layers: int = 2
    width: int = 64
    heads: int = 4
    steps: int = 2000
    batch_size: int = 32
    dispatch: int = 50
    learning_rate: float = 2e-3
    tested: int = 64

    def optimiser(self) -> optax.GradientTransformation:
        return adamw_with_warm_up(self.learning_rate, self.steps // 20, self.steps, weight_decay=0.01)

    def schedule(self) -> Schedule:
        often = 10 * self.dispatch
        return Schedule(self.steps, self.dispatch, evaluate_every=often, checkpoint_every=often)


@dataclass(frozen=True)
class Pretrained:
    """A published model and what it is asked.

    Attributes:
      model: its name, of `jattn weights`.
      length: tokens of a prompt.
      scored_depths, held_out_depths: of needles, for those that score heads and for those that test masks.
      answer: tokens of an answer at most.
      masked: how many of the best heads are switched off.
      random: sets of random heads, for each control.
      outside: random heads are none of so many best.
      at_once: prompts in one batch.
    """

    model: str = "smollm2-135m"
    length: int = 512
    scored_depths: tuple[float, ...] = (0.1, 0.5, 0.9)
    held_out_depths: tuple[float, ...] = (0.25, 0.75)
    answer: int = 28
    masked: tuple[int, ...] = (5, 10, 20)
    random: int = 5
    outside: int = 60
    at_once: int = 8


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      parts: which are run.
      seeds: small decoders trained side by side.
      seed: what all randomness starts from.
    """

    parts: tuple[str, ...] = PARTS
    trained: Trained = field(default_factory=Trained)
    pretrained: Pretrained = field(default_factory=Pretrained)
    seeds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"parts must be among {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1; got {self.seeds}")
        if CLAIMED not in self.pretrained.masked:
            raise ValueError(f"masked must have {CLAIMED}, which claims are about; got {self.pretrained.masked}")


LAPTOP = Config()
SMALL = Trained(24, 16, 2, 2, width=16, heads=2, steps=20, batch_size=4, dispatch=10, tested=4)

PRESETS = {
    "smoke": Preset(
        replace(LAPTOP, parts=("constructed", "trained"), trained=SMALL, seeds=2),
        "half a minute on two cores; without the published model",
    ),
    "laptop": Preset(LAPTOP, "about half an hour of CPU time; jattn weights fetch smollm2-135m first"),
    "paper": Preset(
        replace(
            LAPTOP,
            pretrained=Pretrained(
                length=8192,
                scored_depths=tuple(each / 9 for each in range(10)),
                held_out_depths=tuple(each / 9 for each in range(10)),
                masked=(5, 10, 15, 20, 30, 50),
                random=20,
            ),
        ),
        "prompts of all the 8,192 tokens that the published model knows, ten depths; an accelerator",
    ),
}
