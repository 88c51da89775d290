"""The experiment's settings, arms and presets."""

from dataclasses import dataclass, field, replace

import optax

from experiments.trigger_optimisation.augmentations import Augmentation
from jattn.runs import Preset
from jattn.settings import at_least

METHODS = ("simclr", "byol", "simsiam")
SURROGATE = "simsiam"
"""What the inner problem trains, and the only victim of arms that are not compared over all methods."""

CLEAN, BLTO, TRUNCATED, PENALTY = "clean", "blto", "truncated", "penalty"
FROZEN_RANDOM, FROZEN_CLEAN = "frozen_random", "frozen_clean"
PATCH, SINUSOID, BRIGHT = "patch", "sinusoid", "bright_patch"
HALF, TRANSFER = "blto_half", "blto_transfer"
"""The generator of half the radius, and that of BLTO against victims of another architecture."""

INNER_RUNS = (BLTO, TRUNCATED, PENALTY, HALF)
"""Arms whose generator is learned through a surrogate's training; they differ in the outer gradient, or in epsilon."""
GENERATORS = (*INNER_RUNS, FROZEN_RANDOM, FROZEN_CLEAN)
ALL_METHODS = (CLEAN, BLTO, FROZEN_CLEAN, PATCH)
"""Arms with victims of all methods."""
ONE_METHOD = (SINUSOID, BRIGHT, TRANSFER, FROZEN_RANDOM, HALF, TRUNCATED, PENALTY)
"""Arms with victims of `SURROGATE` alone."""
ARMS = (*ALL_METHODS, *ONE_METHOD)
ENCODERS = ("convolutional", "residual")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      source: "digits", or the path of an .npz file with `images` (count, height, width, channels), uint8, and `labels`.
      side: pixels on a side to which images are enlarged.
      pre_training, probe, validation, test: images of each part; no image is in two.
      target: the class that triggered images are to be taken for.
      poisoned: images of the target class that carry the trigger in pre-training.
      epsilon: the largest change of a pixel, in 255ths; `half_epsilon` is that of the second setting.
      encoder, other_encoder: of surrogate and victims, and of the victims that the trigger is transferred to.
      widths: channels of the convolutional encoder's layers, each of stride 2; the last is the feature's.
      residual_widths, residual_blocks, stem_stride: of the residual encoder, by stage.
      projected, bottleneck: widths of projections and of the predictor's hidden layer.
      generator_widths, generator_blocks: channels at full and at half resolution, and residual blocks at the latter.
      augmentation: of surrogate and victims.
      batch_size, momentum, weight_decay: of all contrastive training, along a cosine.
      learning_rate: by method.
      victim_steps: of a victim's training, with `records` measurements on the way.
      temperature, target_decay: of SimCLR, and of BYOL's target network.
      rounds, inner_steps, outer_steps: of the alternation.
      period: rounds after which the surrogate begins anew.
      outer_rate: of Adam on the generator.
      unrolled: inner steps that the truncated hypergradient goes through, and that the penalty's second copy takes.
      penalty: of the value gap.
      tuned, tuning_steps, tuning_rate: images and steps of fine-tuning as a defence, by Adam.
      pruned: share of features that pruning takes away.
      arms: of `ARMS`; clean and blto are among them.
      methods: of `METHODS`; simsiam is among them.
      seeds: independent repetitions: splits, generators and victims.
      seed: what all randomness starts from.
    """

    source: str = "digits"
    side: int = 16
    pre_training: int = 1000
    probe: int = 200
    validation: int = 100
    test: int = 497
    target: int = 1
    poisoned: int = 20
    epsilon: int = 16
    half_epsilon: int = 8
    encoder: str = "convolutional"
    other_encoder: str = "residual"
    widths: tuple[int, ...] = (8, 16, 32)
    residual_widths: tuple[int, ...] = (8, 16, 32)
    residual_blocks: tuple[int, ...] = (0, 1, 1)
    stem_stride: int = 2
    projected: int = 64
    bottleneck: int = 32
    generator_widths: tuple[int, int] = (8, 16)
    generator_blocks: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    batch_size: int = 128
    learning_rate: dict[str, float] = field(default_factory=lambda: dict.fromkeys(METHODS, 0.1))
    momentum: float = 0.9
    weight_decay: float = 5e-4
    victim_steps: int = 300
    records: int = 10
    temperature: float = 0.2
    target_decay: float = 0.98
    rounds: int = 12
    inner_steps: int = 25
    outer_steps: int = 10
    period: int = 6
    outer_rate: float = 1e-3
    unrolled: int = 2
    penalty: float = 10.0
    tuned: int = 10
    tuning_steps: int = 50
    tuning_rate: float = 1e-3
    pruned: float = 0.5
    arms: tuple[str, ...] = ARMS
    methods: tuple[str, ...] = METHODS
    seeds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(
            1, self, "side", "pre_training", "probe", "validation", "test", "poisoned", "batch_size", "victim_steps",
            "records", "rounds", "inner_steps", "outer_steps", "period", "unrolled", "tuned", "tuning_steps", "seeds",
        )  # fmt: skip
        for name in ("outer_rate", "penalty", "temperature", "tuning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        for name in ("encoder", "other_encoder"):
            if getattr(self, name) not in ENCODERS:
                raise ValueError(f"{name} must be one of {ENCODERS}; got {getattr(self, name)!r}")
        for name in ("epsilon", "half_epsilon"):
            if not 0 <= getattr(self, name) <= 255:
                raise ValueError(f"{name} must be from 0 to 255; got {getattr(self, name)}")
        if set(self.learning_rate) != set(METHODS) or min(self.learning_rate.values()) <= 0:
            raise ValueError(f"learning_rate must have a positive number for {METHODS}; got {self.learning_rate}")
        if self.side % 4:
            raise ValueError(f"side must be a multiple of 4; got {self.side}")
        if self.rounds % self.period:
            raise ValueError(f"rounds must be a multiple of period = {self.period}; got {self.rounds}")
        if self.victim_steps % self.records:
            raise ValueError(f"victim_steps must be a multiple of records = {self.records}; got {self.victim_steps}")
        if self.unrolled > self.inner_steps:
            raise ValueError(f"unrolled must be at most inner_steps = {self.inner_steps}; got {self.unrolled}")
        if len(self.residual_widths) != len(self.residual_blocks):
            raise ValueError(
                f"residual_blocks must have one number for each of residual_widths = {self.residual_widths}; "
                f"got {self.residual_blocks}"
            )
        for name, known, needed in (("arms", ARMS, {CLEAN, BLTO}), ("methods", METHODS, {SURROGATE})):
            if not needed <= set(getattr(self, name)) <= set(known):
                raise ValueError(f"{name} must be of {known}, with {sorted(needed)}; got {getattr(self, name)}")
        if not 0 <= self.pruned < 1:
            raise ValueError(f"pruned must be at least 0 and below 1; got {self.pruned}")

    def methods_of(self, arm: str) -> tuple[str, ...]:
        """Of an arm's victims."""
        return self.methods if arm in ALL_METHODS else (SURROGATE,)

    @property
    def poisoned_share(self) -> float:
        """Of pre-training images."""
        return self.poisoned / self.pre_training

    def radius(self, arm: str) -> int:
        """The largest change of a pixel in an arm, in 255ths."""
        return {CLEAN: 0, HALF: self.half_epsilon, BRIGHT: 255}.get(arm, self.epsilon)

    def optimiser(self, method: str, steps: int) -> optax.GradientTransformation:
        """Momentum with decaying weights, along a cosine."""
        rate = optax.cosine_decay_schedule(self.learning_rate[method], steps)
        return optax.flatten(
            optax.chain(optax.add_decayed_weights(self.weight_decay), optax.sgd(rate, momentum=self.momentum))
        )

    def outer_optimiser(self) -> optax.GradientTransformation:
        """Of the generator."""
        return optax.flatten(optax.adam(self.outer_rate))


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        replace(
            LAPTOP, pre_training=80, probe=40, validation=20, test=40, poisoned=3, widths=(4,), residual_widths=(4,),
            residual_blocks=(1,), projected=4, bottleneck=2, generator_widths=(2, 2), generator_blocks=0, batch_size=8,
            victim_steps=2, records=1, rounds=2, inner_steps=2, outer_steps=1, period=1, unrolled=1, tuning_steps=1,
            arms=(CLEAN, BLTO, PATCH), methods=(SURROGATE,), seeds=2,
        ),
        "seconds, nearly all of it compilation",
    ),
    "laptop": Preset(LAPTOP, "about 12 minutes on two cores"),
    "paper": Preset(
        replace(
            LAPTOP, source="cifar10.npz", side=32, pre_training=50_000, probe=5000, validation=1000, test=4000,
            poisoned=500, epsilon=8, half_epsilon=4, encoder="residual", other_encoder="convolutional",
            widths=(64, 128, 256, 512), residual_widths=(64, 128, 256, 512), residual_blocks=(2, 2, 2, 2),
            stem_stride=1, projected=2048, bottleneck=512, generator_widths=(64, 256), generator_blocks=2,
            augmentation=Augmentation(crop=0.45, rotation=0.0, noise=0.0, flip=True, saturation=0.4, grey=0.2),
            batch_size=512, learning_rate=dict.fromkeys(METHODS, 0.06), victim_steps=78_000, target_decay=0.996,
            rounds=400, inner_steps=100, outer_steps=50, period=50, tuned=500,
        ),
        "CIFAR-10 from a file of one's own, ResNet-18, hundreds of epochs of sixty victims: days on accelerators",
    ),
}  # fmt: skip
