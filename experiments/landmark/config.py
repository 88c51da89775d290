"""The experiment's settings and presets."""

from dataclasses import dataclass, replace

import optax

from jattn.runs import Preset
from jattn.settings import at_least
from jattn.train import Schedule, adamw_with_warm_up

LANDMARK, PLAIN = "landmark", "plain"
ARMS = (LANDMARK, PLAIN)
PARTS = ("text", "pass_key")


@dataclass(frozen=True)
class PassKey:
    """A key that is put into text and asked for at its end (`experiments.landmark.pass_key`).

    Attributes:
      length: bytes that a window of tuning predicts.
      batch_size, learning_rate, steps: of tuning with AdamW, as the training before.
      lengths: bytes that windows of the test predict, read in chunks; claims are on the last.
      windows: of each length.
    """

    length: int = 128
    batch_size: int = 4
    learning_rate: float = 3e-3
    steps: int = 800
    lengths: tuple[int, ...] = (256, 2048)
    windows: int = 16
    steps_per_dispatch: int = 50

    def __post_init__(self) -> None:
        for name in ("batch_size", "windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"pass_key.{name} must be at least 1; got {getattr(self, name)}")
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"pass_key.lengths must rise; got {self.lengths}")
        self.schedule()

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.steps_per_dispatch, self.steps_per_dispatch, self.steps_per_dispatch)

    def optimiser(self, weight_decay: float) -> optax.GradientTransformation:
        """AdamW, after a warm-up of a twentieth down to a fifth of the learning rate."""
        return adamw_with_warm_up(
            self.learning_rate, max(1, self.steps // 20), self.steps, lowest=self.learning_rate / 5, b2=0.95,
            weight_decay=weight_decay,
        )  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      parts: that are run; pass keys take the landmark model that the text trains.
      width, layers, heads, hidden: of the decoder.
      block: bytes between landmarks.
      length: bytes that a window of training predicts.
      long_length: bytes that a window of the test predicts, read in chunks.
      chunk: tokens and landmarks read at a time.
      top_k: how many blocks are retrieved, in one measurement each; claims are on the last.
      batch_size, learning_rate, weight_decay, steps: of training with AdamW, a cosine after a warm-up.
      devices: over which each batch is cut.
      validation_windows: evaluated through training.
      test_windows: of other documents, on which everything is measured after training.
      seeds: independent repetitions (weights and batches), run as one program.
      seed: what all randomness starts from.
      steps_per_dispatch, evaluate_every, checkpoint_every: see jattn.train.Schedule.
    """

    parts: tuple[str, ...] = PARTS
    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 336
    block: int = 15
    length: int = 256
    long_length: int = 2048
    chunk: int = 128
    top_k: tuple[int, ...] = (2, 4)
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    steps: int = 600
    validation_windows: int = 32
    test_windows: int = 32
    seeds: int = 3
    seed: int = 0
    devices: int = 1
    steps_per_dispatch: int = 25
    evaluate_every: int = 150
    checkpoint_every: int = 150
    pass_key: PassKey = PassKey()

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"parts must be some of {PARTS}; got {self.parts}")
        at_least(
            1, self, "layers", "block", "length", "chunk", "batch_size", "validation_windows", "test_windows", "seeds",
        )  # fmt: skip
        if not self.top_k or min(self.top_k) < 1:
            raise ValueError(f"top_k must be at least one number from 1; got {self.top_k}")
        if self.long_length % (2 * self.length):
            raise ValueError(f"long_length must be a multiple of twice length = {self.length}; got {self.long_length}")
        if self.longest_position >= self.length + self.length // self.block:
            raise ValueError(
                f"positions must stay within the {self.length + self.length // self.block} of training; top_k = "
                f"{self.top_k}, block = {self.block} and chunk = {self.chunk} take them to {self.longest_position}"
            )
        self.schedule()

    @property
    def longest_position(self) -> int:
        """The highest position that a chunk may have."""
        return (max(self.top_k) + 1) * (self.block + 1) + self.block + self.chunk - 1

    @property
    def span(self) -> int:
        """The most keys that a token of a chunk reads: retrieved blocks, an unfinished one, and the chunk."""
        return max(self.top_k) * (self.block + 1) + self.block + self.chunk

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.steps_per_dispatch, self.evaluate_every, self.checkpoint_every)

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW, after a warm-up of a twentieth down to a fifth of the learning rate."""
        return adamw_with_warm_up(
            self.learning_rate, max(1, self.steps // 20), self.steps, lowest=self.learning_rate / 5, b2=0.95,
            weight_decay=self.weight_decay,
        )  # fmt: skip


LAPTOP = Config()
SMOKE = replace(
    LAPTOP, width=16, heads=2, hidden=24, layers=1, block=3, length=32, long_length=128, chunk=8, top_k=(1,), steps=20,
    validation_windows=4, test_windows=4, seeds=2, steps_per_dispatch=10, evaluate_every=20, checkpoint_every=20,
    pass_key=PassKey(batch_size=2, steps=10, lengths=(128,), windows=4, steps_per_dispatch=10),
)  # fmt: skip
PAPER = replace(
    LAPTOP, width=1024, layers=12, heads=8, hidden=4096, block=50, length=502, long_length=4016, chunk=250, top_k=(2,),
    batch_size=128, devices=16, weight_decay=0.001, steps=240_000, seeds=1, evaluate_every=1000, checkpoint_every=5000,
    pass_key=PassKey(512, 128, 2e-4, 15_000, (512, 4096, 16_384), 100),
)  # fmt: skip

PRESETS = {
    "smoke": Preset(SMOKE, "a minute on two cores, nearly all of it compiling"),
    "laptop": Preset(LAPTOP, "about 20 minutes on two cores"),
    "paper": Preset(PAPER, "the paper's sizes and steps, on bytes of the same small text: for accelerators"),
}
