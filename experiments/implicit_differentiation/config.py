"""The experiment's settings and presets, a group for each part."""

from dataclasses import dataclass, fields, replace

from jattn.runs import Preset

ROWS = (
    "stationary",
    "Newton",
    "fixed point",
    "KKT",
    "KKT of a quadratic program",
    "projected gradient",
    "proximal gradient",
    "block proximal gradient",
    "mirror descent",
    "conic",
    "isotonic regression",
    "optimal transport",
)
"""Of the catalogue."""
SOLVERS = ("projected gradient", "mirror descent", "block coordinate descent")
"""Of the support vector machine's inner problem."""


PARTS = ("precision", "catalogue", "support_vectors", "distillation", "dictionary", "spheres")
"""Of the experiment, each with claims of its own."""


@dataclass(frozen=True)
class Precision:
    """Ridge: steps of gradient descent, and resamplings of the patients."""

    steps: int = 500
    seeds: int = 5


@dataclass(frozen=True)
class Catalogue:
    """Rows, of `ROWS`."""

    rows: tuple[str, ...] = ROWS


@dataclass(frozen=True)
class SupportVectors:
    """Attributes:
    training: rows; the other digits are for validation.
    widths: numbers of random features.
    solvers: of the inner problem, of `SOLVERS`.
    gradient_steps, mirror_steps, sweeps: of the solvers, the last over all rows, that take about as long.
    outer_steps: of Adam on log θ, from `start`, by `rate`.
    seeds: splits.
    """

    training: int = 898
    widths: tuple[int, ...] = (64, 256, 1024)
    solvers: tuple[str, ...] = SOLVERS
    gradient_steps: int = 500
    mirror_steps: int = 1500
    sweeps: int = 40
    outer_steps: int = 2
    start: float = -3.0
    rate: float = 0.5
    seeds: int = 3

    def steps_of(self, solver: str) -> int:
        """Its steps."""
        return (self.gradient_steps, self.mirror_steps, self.sweeps)[SOLVERS.index(solver)]


@dataclass(frozen=True)
class Distillation:
    """Attributes:
    source: of `distillation.split`.
    training: images; the others are for testing.
    penalty: squared, on the classifier's weights.
    steps: of the classifier's gradient descent.
    outer_steps: of Adam on the images.
    rounds: of timing, with the first split.
    seeds: splits.
    """

    source: str = "digits"
    training: int = 898
    penalty: float = 0.01
    steps: int = 500
    outer_steps: int = 200
    rounds: int = 5
    seeds: int = 3


@dataclass(frozen=True)
class Dictionary:
    """Attributes:
    training, validation: samples; the others are for testing.
    atoms: of the dictionary.
    l1s: penalties of the codes that are tried.
    code_steps: of the codes' solver.
    steps: of the learning; a multiple of 10.
    seeds: splits.
    """

    training: int = 100
    validation: int = 100
    atoms: int = 10
    l1s: tuple[float, ...] = (0.003, 0.01, 0.03)
    code_steps: int = 100
    steps: int = 200
    seeds: int = 5


@dataclass(frozen=True)
class Spheres:
    """Attributes:
    discs: half of either diameter.
    packing: their areas over that of the square.
    steps: of the minimiser; a multiple of `records`.
    records: points along the way.
    starts: random ones.
    """

    discs: int = 32
    packing: float = 0.98
    steps: int = 1000
    records: int = 20
    starts: int = 20


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers, but for times.

    Attributes:
      parts: that are run.
      seed: what all randomness starts from.
    """

    parts: tuple[str, ...] = PARTS
    precision: Precision = Precision()
    catalogue: Catalogue = Catalogue()
    support_vectors: SupportVectors = SupportVectors()
    distillation: Distillation = Distillation()
    dictionary: Dictionary = Dictionary()
    spheres: Spheres = Spheres()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, given, known in (
            ("parts", self.parts, PARTS),
            ("catalogue.rows", self.catalogue.rows, ROWS),
            ("support_vectors.solvers", self.support_vectors.solvers, SOLVERS),
        ):
            if not given or not set(given) <= set(known):
                raise ValueError(f"{name} must be some of {known}; got {given}")
        for name in PARTS:
            for field in fields(getattr(self, name)):
                value = getattr(getattr(self, name), field.name)
                if isinstance(value, int) and value < 1:
                    raise ValueError(f"{name}.{field.name} must be at least 1; got {value}")
        if len(self.support_vectors.widths) < 2 or list(self.support_vectors.widths) != sorted(
            set(self.support_vectors.widths)
        ):
            raise ValueError(
                f"support_vectors.widths must be at least two, each larger than the last; "
                f"got {self.support_vectors.widths}"
            )
        if self.dictionary.steps % 10:
            raise ValueError(f"dictionary.steps must be a multiple of 10; got {self.dictionary.steps}")
        if self.spheres.steps % self.spheres.records:
            raise ValueError(
                f"spheres.steps must be a multiple of its {self.spheres.records} records; got {self.spheres.steps}"
            )


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        Config(
            ("precision", "catalogue"),
            Precision(20, 2),
            Catalogue(("fixed point",)),
            SupportVectors(6, (4, 8), ("mirror descent",), mirror_steps=10, outer_steps=1, seeds=2),
            Distillation(training=30, steps=5, outer_steps=2, rounds=1, seeds=2),
            Dictionary(30, 30, 4, (0.01,), 50, 10, 2),
            Spheres(6, steps=40, records=2, starts=2),
        ),
        "seconds: the first two parts alone; half a minute with all of them, nearly all of it compilation",
    ),
    "laptop": Preset(LAPTOP, "about a quarter of an hour on two cores"),
    "paper": Preset(
        replace(
            LAPTOP,
            support_vectors=SupportVectors(
                700, (100, 1000, 10_000), gradient_steps=2500, mirror_steps=5000, sweeps=200, outer_steps=100, seeds=10
            ),
            distillation=Distillation("fashion_mnist", 60_000, steps=1000, outer_steps=1000, seeds=10),
            dictionary=Dictionary(200, 100, 10, code_steps=1000, steps=1000, seeds=20),
            spheres=Spheres(128, steps=10_000, records=100, starts=100),
        ),
        "hours on an accelerator: 10,000 features, 60,000 images, 128 discs",
    ),
}
