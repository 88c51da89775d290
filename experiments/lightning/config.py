"""The experiment's settings and presets."""

from dataclasses import dataclass, replace

import optax

from jattn.runs import Preset
from jattn.settings import at_least
from jattn.train import Schedule, adamw_with_warm_up

ARMS = ("softmax", "lightning", "no_decay", "no_gate", "no_activation")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      length: bytes of a window.
      width, layers, heads: of every arm.
      hidden: of the softmax arm's feed-forward layers; the others' are narrower by a third of the width, so that all
        arms but the one without a gate have as many parameters.
      batch_size, learning_rate, warm_up, steps: of training with Adam; the rate rises over the steps of the warm-up,
        then falls along a cosine.
      devices: over which each batch is cut.
      seeds: independent repetitions (weights and windows), run as one program.
      seed: what all randomness starts from.
      steps_per_dispatch, evaluate_every, checkpoint_every: see jattn.train.Schedule.
      validation_windows: evaluated through training.
      test_windows: evaluated after training, of documents that nothing was chosen by.
      timed_tokens: in the batch of every length whose time per token is taken.
      timed_lengths: those lengths.
      timed_heads, timed_head_dim: of what is timed.
      decoded: after how many tokens the state of decoding is weighed.
    """

    length: int = 256
    width: int = 64
    layers: int = 4
    heads: int = 4
    hidden: int = 192
    batch_size: int = 8
    learning_rate: float = 3e-3
    warm_up: int = 20
    steps: int = 240
    seeds: int = 3
    seed: int = 0
    devices: int = 1
    steps_per_dispatch: int = 20
    evaluate_every: int = 40
    checkpoint_every: int = 40
    validation_windows: int = 64
    test_windows: int = 256
    timed_tokens: int = 16384
    timed_lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)
    timed_heads: int = 4
    timed_head_dim: int = 64
    decoded: tuple[int, int] = (1024, 16384)

    def __post_init__(self) -> None:
        at_least(
            1, self, "length", "batch_size", "warm_up", "seeds", "validation_windows", "test_windows", "timed_heads",
        )  # fmt: skip
        if self.hidden <= self.width // 3:
            raise ValueError(f"hidden must be above a third of the width of {self.width}; got {self.hidden}")
        if self.warm_up >= self.steps:
            raise ValueError(f"warm_up must be below the {self.steps} steps; got {self.warm_up}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        if len(self.timed_lengths) < 2 or any(self.timed_tokens % length for length in self.timed_lengths):
            raise ValueError(
                f"timed_lengths must be at least two, which divide timed_tokens = {self.timed_tokens}; "
                f"got {self.timed_lengths}"
            )
        self.schedule()

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.steps_per_dispatch, self.evaluate_every, self.checkpoint_every)

    def optimiser(self) -> optax.GradientTransformation:
        return adamw_with_warm_up(self.learning_rate, self.warm_up, self.steps)


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        replace(
            LAPTOP, length=32, width=16, layers=1, heads=2, hidden=32, batch_size=2, warm_up=5, steps=20,
            steps_per_dispatch=10, evaluate_every=10, checkpoint_every=20, seeds=2, validation_windows=4,
            test_windows=4, timed_tokens=128, timed_lengths=(64, 128), timed_heads=1, timed_head_dim=16,
            decoded=(16, 64),
        ),
        "a minute on two cores",
    ),
    "laptop": Preset(LAPTOP, "about 17 minutes on two cores"),
    "paper": Preset(
        replace(
            LAPTOP, length=2048, width=1024, layers=24, heads=8, hidden=3072, batch_size=256, learning_rate=5e-4,
            devices=64, warm_up=2000, steps=100_000, steps_per_dispatch=100, evaluate_every=2000,
            checkpoint_every=2000, seeds=1,
            validation_windows=64, test_windows=256, timed_tokens=131072,
            timed_lengths=(1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072), timed_heads=32, timed_head_dim=128,
        ),
        "the paper's 385M model (24 layers, width 1024, 8 heads of 128) on bytes of this text, for accelerators",
    ),
}  # fmt: skip
