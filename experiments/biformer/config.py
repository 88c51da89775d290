"""The experiment's settings, arms and presets."""

from dataclasses import dataclass, replace

import optax

from jattn.models.biformer import TINY, BiFormerConfig
from jattn.runs import Preset
from jattn.settings import at_least
from jattn.train import Schedule, adamw_with_warm_up

FULL, WINDOW, RANDOM = "full", "window", "random_4"
READ = 4
"""Regions that a region reads in the arms that claims compare."""
PATCH = 4
"""Pixels on a side of what becomes a token."""
PIXELS = {"digits": 8, "fashion_mnist": 32}
"""On a side of a tile, by the data that tiles show."""
CLASSES = 10
ANSWERS = 4
"""None, one, two, three or more."""
DENSE_TOKENS = 256
"""Maps of up to so many are attended to with all scores at once: on a CPU the least work to do, if not to count."""
CHUNK = 125
"""Mosaics that are answered at a time when testing."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers.

    Attributes:
      source: "digits" or "fashion_mnist", what tiles show.
      tiles: on a side of a mosaic; each is a region.
      depths, widths, head_width, hidden: of the stages of every model; the map halves from stage to stage.
      start: standard deviation of linear weights at first.
      top_k: regions that a region reads, of the routed arms; 4 is among them, and one that is not all.
      validation_images, test_images: kept from training, and from each other, before mosaics are composed.
      batch_size, learning_rate, weight_decay, steps: of training with AdamW, a cosine after a warm-up.
      naming: weight of the loss of naming what every tile shows.
      validation_mosaics: answered through training.
      test_mosaics: answered after training.
      seeds: independent repetitions (weights and mosaics), run as one program.
      seed: what all randomness starts from.
      devices: over which each batch is cut.
      steps_per_dispatch, evaluate_every, checkpoint_every: see jattn.train.Schedule.
    """

    source: str = "digits"
    tiles: int = 4
    depths: tuple[int, ...] = (3,)
    widths: tuple[int, ...] = (48,)
    head_width: int = 16
    hidden: int = 3
    start: float = 0.144
    top_k: tuple[int, ...] = (4, 8)
    validation_images: int = 200
    test_images: int = 597
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    steps: int = 1200
    naming: float = 1.0
    validation_mosaics: int = 250
    test_mosaics: int = 1000
    seeds: int = 3
    seed: int = 0
    devices: int = 1
    steps_per_dispatch: int = 50
    evaluate_every: int = 200
    checkpoint_every: int = 400

    def __post_init__(self) -> None:
        if self.source not in PIXELS:
            raise ValueError(f"source must be one of {sorted(PIXELS)}; got {self.source!r}")
        at_least(1, self, "tiles", "validation_images", "test_images", "batch_size", "seeds")
        if READ not in self.top_k or len(set(self.top_k)) < len(self.top_k) or min(self.top_k) == self.regions:
            raise ValueError(
                f"top_k must be distinct and have {READ} and one below all {self.regions}; got {self.top_k}"
            )
        if not all(1 <= top_k <= self.regions for top_k in self.top_k):
            raise ValueError(f"top_k must be from 1 to {self.regions}; got {self.top_k}")
        for name in ("validation_mosaics", "test_mosaics"):
            if getattr(self, name) < 1 or getattr(self, name) % CHUNK:
                raise ValueError(f"{name} must be a multiple of {CHUNK}; got {getattr(self, name)}")
        for name in ("learning_rate", "start"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.naming < 0:
            raise ValueError(f"naming must not be negative; got {self.naming}")
        halvings = PATCH * 2 ** (len(self.depths) - 1)
        if PIXELS[self.source] % halvings:
            raise ValueError(f"depths must leave a token to each tile of {PIXELS[self.source]}; got {self.depths}")
        self.body(FULL)
        self.schedule()

    @property
    def regions(self) -> int:
        """How many there are."""
        return self.tiles**2

    @property
    def side(self) -> int:
        """Tokens on a side of the first stage's map."""
        return self.tiles * PIXELS[self.source] // PATCH

    @property
    def arms(self) -> tuple[str, ...]:
        return (FULL, *map(routed, self.top_k), WINDOW, RANDOM)

    def entries(self, arm: str) -> int | None:
        """Regions that a region reads in an arm; None: everything at once."""
        possible = {routed(top_k): top_k for top_k in range(1, self.regions + 1)}
        return {FULL: None, WINDOW: 1, RANDOM: READ, **possible}[arm]

    def body(self, arm: str) -> BiFormerConfig:
        """Without convolutions over patches, through which a window would see its neighbours."""
        small = self.side**2 <= DENSE_TOKENS
        return BiFormerConfig(
            depths=self.depths, widths=self.widths, top_k=(self.entries(arm),) * len(self.depths), regions=self.tiles,
            head_width=self.head_width, hidden=self.hidden, channels=1, classes=ANSWERS + CLASSES,
            position_kernel=None, local_kernel=None, positions=self.side, swin_layout=True, scale_by_width=False,
            start=self.start, access="masked" if small else "gathered",
            implementation="reference" if small else None,
        )  # fmt: skip

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.steps_per_dispatch, self.evaluate_every, self.checkpoint_every)

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW, after a warm-up of a fifteenth down to nothing."""
        return adamw_with_warm_up(
            self.learning_rate, max(1, self.steps // 15), self.steps, b2=0.99, weight_decay=self.weight_decay
        )


def routed(top_k: int) -> str:
    """The name of the arm whose regions read the `top_k` that they are routed to."""
    return f"routed_{top_k}"


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        replace(
            LAPTOP, top_k=(READ,), depths=(1,), widths=(16,), steps=20, batch_size=4, seeds=2, validation_mosaics=125,
            test_mosaics=125, steps_per_dispatch=10, evaluate_every=20, checkpoint_every=20,
        ),
        "a minute on two cores, nearly all of it compilation",
    ),
    "laptop": Preset(LAPTOP, "about 16 minutes on two cores"),
    "paper": Preset(
        replace(
            LAPTOP, source="fashion_mnist", tiles=7, depths=TINY.depths, widths=TINY.widths, head_width=32, start=0.02,
            top_k=(1, 4, 16, 49), validation_images=5000, test_images=10_000, batch_size=1024, devices=8,
            learning_rate=5e-4, weight_decay=0.05, steps=100_000, seeds=1, steps_per_dispatch=100,
            evaluate_every=2000, checkpoint_every=5000,
        ),
        "the sizes of BiFormer-T on mosaics of 224 x 224, as ImageNet is not to be had: for accelerators",
    ),
}  # fmt: skip
