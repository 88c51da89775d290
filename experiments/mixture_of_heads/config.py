"""The experiment's settings, arms and presets."""

from dataclasses import dataclass, replace

import optax

from jattn.runs import Preset
from jattn.settings import at_least
from jattn.train import Schedule, adamw_with_warm_up

MULTI_HEAD = "multi_head"


@dataclass(frozen=True)
class Mixture:
    """How many heads are shared, and how many of the others each token keeps."""

    shared: int
    top_k: int


@dataclass(frozen=True)
class Images:
    """Vision transformers on handwritten digits (`experiments.mixture_of_heads.images`).

    Attributes:
      patch: pixels along a side.
      width, layers, hidden: of the model; heads are those of the text's.
      batch_size, learning_rate, steps: of training with AdamW, a cosine after a warm-up.
      validation, test: images, of 1,797.
      seeds: independent repetitions (weights and batches).
    """

    patch: int = 2
    width: int = 64
    layers: int = 4
    hidden: int = 128
    batch_size: int = 32
    learning_rate: float = 2e-3
    steps: int = 600
    validation: int = 300
    test: int = 450
    seeds: int = 5
    steps_per_dispatch: int = 50
    evaluate_every: int = 200
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        at_least(1, self, "patch", "layers", "batch_size", "validation", "test", "seeds")
        if self.learning_rate <= 0:
            raise ValueError(f"images.learning_rate must be positive; got {self.learning_rate}")
        self.schedule()

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.steps_per_dispatch, self.evaluate_every, self.checkpoint_every)

    def optimiser(self, weight_decay: float) -> optax.GradientTransformation:
        return warmed_up(self.learning_rate, self.steps, weight_decay)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      width, layers, heads, hidden: of the decoder; heads in quarters.
      length: bytes that a window predicts.
      batch_size, learning_rate, weight_decay, steps: of training with AdamW, a cosine after a warm-up.
      devices: over which each batch is cut.
      tuning_steps: steps of continued training, at a third of the learning rate.
      balance_weight: of the balance loss, but for the arm that goes without.
      validation_windows: evaluated through training.
      test_windows: of other documents, on which everything is measured after training.
      seeds: independent repetitions (weights and batches), run as one program.
      images: of the models of images; heads, weight decay and weight of the balance loss are those of the text's.
      seed: what all randomness starts from.
      steps_per_dispatch, evaluate_every, checkpoint_every: see jattn.train.Schedule.
    """

    width: int = 128
    layers: int = 2
    heads: int = 8
    hidden: int = 336
    length: int = 128
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    steps: int = 450
    tuning_steps: int = 100
    balance_weight: float = 0.01
    validation_windows: int = 64
    test_windows: int = 512
    seeds: int = 3
    images: Images = Images()
    seed: int = 0
    devices: int = 1
    steps_per_dispatch: int = 25
    evaluate_every: int = 150
    checkpoint_every: int = 150

    def __post_init__(self) -> None:
        at_least(
            1, self, "layers", "length", "batch_size", "tuning_steps", "validation_windows", "test_windows", "seeds",
        )  # fmt: skip
        if self.heads < 4 or self.heads % 4:
            raise ValueError(f"heads must be a multiple of 4; got {self.heads}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        if self.images.width % self.heads:
            raise ValueError(f"images.width must be a multiple of the {self.heads} heads; got {self.images.width}")
        if self.balance_weight < 0:
            raise ValueError(f"balance_weight must not be negative; got {self.balance_weight}")
        self.schedule(self.steps)

    @property
    def mixtures(self) -> dict[str, Mixture]:
        """The arms beside multi-head attention, named by the share of heads that a token runs.

        One has no shared heads, and one is trained without the balance loss.
        """
        quarter, half = self.heads // 4, self.heads // 2
        return {
            "mixture_100": Mixture(3 * self.heads // 8, self.heads - 3 * self.heads // 8),
            "mixture_75": Mixture(quarter, half),
            "mixture_50": Mixture(quarter, quarter),
            "unbalanced_50": Mixture(quarter, quarter),
            "no_shared_50": Mixture(0, half),
        }

    @property
    def arms(self) -> tuple[str, ...]:
        return (MULTI_HEAD, *self.mixtures)

    def schedule(self, steps: int) -> Schedule:
        return Schedule(steps, self.steps_per_dispatch, self.evaluate_every, self.checkpoint_every)

    def optimiser(self, learning_rate: float, steps: int) -> optax.GradientTransformation:
        return warmed_up(learning_rate, steps, self.weight_decay)


def warmed_up(learning_rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    """AdamW, after a warm-up of a tenth down to a twentieth of the learning rate."""
    return adamw_with_warm_up(
        learning_rate, max(1, steps // 10), steps, lowest=learning_rate / 20, b2=0.95, weight_decay=weight_decay
    )


LAPTOP = Config()
SMOKE = replace(
    LAPTOP, width=32, heads=4, hidden=48, length=32, steps=20, tuning_steps=10, validation_windows=4, test_windows=8,
    seeds=2, layers=1, steps_per_dispatch=10, evaluate_every=10, checkpoint_every=20,
    images=Images(
        patch=4, width=16, layers=1, hidden=16, batch_size=8, steps=20, validation=40, test=60, seeds=2,
        steps_per_dispatch=10, evaluate_every=10, checkpoint_every=20,
    ),
)  # fmt: skip
PAPER = replace(
    LAPTOP, width=768, layers=12, heads=12, hidden=2048, length=2048, batch_size=2048, devices=64, learning_rate=3e-4,
    steps=25_000, tuning_steps=3_750, seeds=1, evaluate_every=500, checkpoint_every=1000,
    images=Images(patch=1, width=192, layers=12, hidden=768, steps=4_000),
)  # fmt: skip

PRESETS = {
    "smoke": Preset(SMOKE, "a few minutes on two cores, nearly all of it compiling"),
    "laptop": Preset(LAPTOP, "about 19 minutes on two cores"),
    "paper": Preset(
        PAPER, "the size of the paper's LLM-S, 4M tokens a batch, on the same small text: for accelerators"
    ),
}
