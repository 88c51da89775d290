"""The experiment's settings and presets."""

from dataclasses import dataclass, replace

from jattn.data.linear_prompts import LinearPrompts
from jattn.runs import Preset
from jattn.settings import at_least
from jattn.train import Schedule

CHUNK = 1000
"""Test prompts are drawn and answered so many at a time."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      dimension: covariates d.
      context_length: labelled examples L in a training prompt.
      noise_variance: σ².
      covariate_correlation: ρ of Σ_ij = ρ^|i-j|; 0 is the paper's main setting.
      task_features: (first, past-the-last) covariates each label depends on; empty for one label on all of them.
      heads: head numbers of the softmax models, trained side by side on the same prompts.
      linear_heads: heads of the linear-attention model beside them; 0 leaves it out.
      batch_size, learning_rate, steps: of training with Adam.
      seeds: independent repetitions (weights and prompts), run as one program.
      seed: what all randomness starts from.
      steps_per_dispatch, evaluate_every, checkpoint_every: see jattn.train.Schedule.
      test_prompts: fresh prompts, a multiple of 1000, for every measurement of every seed after training.
      test_lengths: context lengths to test at, without retraining; the training length is always one.
      real_lengths: context lengths on the diabetes table.
      real_splits: random splits of its rows.
    """

    dimension: int = 5
    context_length: int = 40
    noise_variance: float = 0.1
    covariate_correlation: float = 0.0
    task_features: tuple[tuple[int, int], ...] = ()
    heads: tuple[int, ...] = (1, 2, 4, 8)
    linear_heads: int = 2
    batch_size: int = 256
    learning_rate: float = 1e-3
    steps: int = 20_000
    seeds: int = 5
    seed: int = 0
    steps_per_dispatch: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 1000
    test_prompts: int = 50_000
    test_lengths: tuple[int, ...] = (10, 20, 40, 100)
    real_lengths: tuple[int, ...] = (10, 20, 40, 80, 160, 320)
    real_splits: int = 20

    def __post_init__(self) -> None:
        at_least(1, self, "batch_size", "seeds", "test_prompts", "real_splits")
        if self.test_prompts % CHUNK:
            raise ValueError(f"test_prompts must be a multiple of {CHUNK}; got {self.test_prompts}")
        if not self.heads or min(self.heads) < 1 or len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads must be distinct numbers of at least 1; got {self.heads}")
        if self.linear_heads < 0:
            raise ValueError(f"linear_heads must not be negative; got {self.linear_heads}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        if min((*self.test_lengths, *self.real_lengths), default=1) < 1:
            raise ValueError(f"test_lengths and real_lengths must be at least 1; got {self.test_lengths}")
        self.world(self.context_length)  # checks the rest
        self.schedule()

    @property
    def tasks(self) -> tuple[tuple[int, int], ...]:
        return self.task_features or ((0, self.dimension),)

    def world(self, context_length: int) -> LinearPrompts:
        """The prompts' distribution at a context length."""
        return LinearPrompts(
            self.dimension, context_length, self.noise_variance, self.covariate_correlation, self.tasks
        )

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.steps_per_dispatch, self.evaluate_every, self.checkpoint_every)


LAPTOP = Config()
MULTITASK = replace(LAPTOP, task_features=((0, 3), (1, 5)), heads=(2, 3, 4, 6), linear_heads=0, learning_rate=1e-3)

PRESETS = {
    "smoke": Preset(
        replace(
            LAPTOP, steps=200, seeds=2, batch_size=32, test_prompts=1000, real_splits=2,
            evaluate_every=100, checkpoint_every=100,
        ),
        "seconds on two cores",
    ),
    "laptop": Preset(LAPTOP, "five to ten minutes on two cores"),
    "anisotropic": Preset(
        replace(LAPTOP, covariate_correlation=0.5), "five to ten minutes on two cores; correlated covariates"
    ),
    "multitask": Preset(MULTITASK, "five to ten minutes on two cores; two tasks share a prompt"),
    "paper": Preset(
        replace(LAPTOP, steps=500_000, evaluate_every=5000, checkpoint_every=10_000, test_prompts=1_000_000),
        "the paper's 500,000 steps: about 2 hours on two cores, minutes on an accelerator",
    ),
}  # fmt: skip
