"""The experiment's settings and presets."""

from dataclasses import dataclass, replace
from typing import Literal

import optax

from jattn.runs import Preset
from jattn.settings import at_least
from jattn.train import Schedule, adamw_with_warm_up

ARMS = ("local", "random", "routing", "full")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      corpus: bytes of the reference of Python and its standard library, or of the library's source files alone, in
        which long names repeat more.
      length: bytes of a window.
      width, layers, heads, hidden: of the decoder, the same in every arm.
      block, look_back: of local heads.
      routing_layers: how many layers, the last ones, have clustered heads in the arms "routing" and "random".
      local_heads: heads of those layers that stay local.
      clusters, window: of each clustered head.
      causal_routing: the strictly causal form of clustered heads instead of the published one.
      exclude_self: tokens of clustered heads do not read themselves.
      decay: of the centroids' moving averages, for each step.
      commitment: weight of the loss that pulls queries to their centroids.
      batch_size, learning_rate, warm_up, steps: of training with Adam; the rate rises over the steps of the warm-up,
        then falls along a cosine.
      devices: over which each batch is cut.
      seeds: independent repetitions (weights and windows), run as one program.
      seed: what all randomness starts from.
      steps_per_dispatch, evaluate_every, checkpoint_every: see jattn.train.Schedule.
      validation_windows: evaluated through training.
      test_windows: evaluated after training, of documents that nothing was chosen by.
      probe_windows: of the test windows, those on which attention itself is looked at.
    """

    corpus: Literal["python_library", "python_sources"] = "python_library"
    length: int = 1024
    width: int = 128
    layers: int = 2
    heads: int = 8
    hidden: int = 384
    block: int = 64
    look_back: int = 64
    routing_layers: int = 1
    local_heads: int = 4
    clusters: int = 16
    window: int = 64
    causal_routing: bool = False
    exclude_self: bool = True
    decay: float = 0.99
    commitment: float = 1e-4
    batch_size: int = 2
    learning_rate: float = 3e-3
    warm_up: int = 50
    steps: int = 400
    seeds: int = 3
    seed: int = 0
    devices: int = 1
    steps_per_dispatch: int = 25
    evaluate_every: int = 100
    checkpoint_every: int = 100
    validation_windows: int = 8
    test_windows: int = 64
    probe_windows: int = 4

    def __post_init__(self) -> None:
        at_least(
            1, self, "length", "batch_size", "warm_up", "seeds", "validation_windows", "test_windows", "probe_windows",
        )  # fmt: skip
        if not 1 <= self.routing_layers <= self.layers:
            raise ValueError(f"routing_layers must be from 1 to the {self.layers} layers; got {self.routing_layers}")
        if not 2 <= self.local_heads < self.heads:
            raise ValueError(f"local_heads must be from 2, to be compared, to {self.heads - 1}; got {self.local_heads}")
        if self.probe_windows > self.test_windows:
            raise ValueError(f"probe_windows must be at most {self.test_windows}; got {self.probe_windows}")
        if self.warm_up >= self.steps:
            raise ValueError(f"warm_up must be below the {self.steps} steps; got {self.warm_up}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        self.schedule()

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.steps_per_dispatch, self.evaluate_every, self.checkpoint_every)

    def optimiser(self) -> optax.GradientTransformation:
        return adamw_with_warm_up(self.learning_rate, self.warm_up, self.steps)


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        replace(
            LAPTOP, length=128, width=32, layers=1, heads=4, hidden=64, local_heads=2, block=16, look_back=16,
            clusters=8, window=16, batch_size=2, warm_up=10, steps=40, steps_per_dispatch=20, evaluate_every=20,
            checkpoint_every=40, seeds=2, validation_windows=4, test_windows=8, probe_windows=2,
        ),
        "a few minutes on two cores, nearly all of it compiling",
    ),
    "laptop": Preset(LAPTOP, "about 19 minutes on two cores"),
    "paper": Preset(
        replace(
            LAPTOP, length=8192, width=1024, layers=12, hidden=2816, block=256, look_back=256, routing_layers=12,
            window=512, exclude_self=False, decay=0.999, batch_size=16, devices=16, learning_rate=3e-4, warm_up=10_000,
            steps=300_000, steps_per_dispatch=100, evaluate_every=5000, checkpoint_every=5000, seeds=1,
            validation_windows=64, test_windows=128,
        ),
        "the paper's byte-level model (12 layers, 4 local and 4 routing heads, 16 clusters of 512, 8,192 bytes) on "
        "this text, for accelerators",
    ),
}  # fmt: skip
