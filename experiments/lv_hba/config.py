"""The experiment's settings and presets."""

from dataclasses import dataclass, fields, replace
from typing import Any

from experiments.lv_hba.entrants import of_equalities, of_smooth_problems
from jattn.runs import Preset

PARTS = ("toy", "first_toy", "machine", "cleaning", "race", "group_lasso")
TRACKS = ("digits", "first_toy")
CHECKED = (200, 1000, 5000, 20_000)
"""Iterations of the second toy after which its error is held against a bar."""
SAMPLES = {"breast_cancer": 569, "digits": 1797}


def _check_numbers(given: Any, but: str = "") -> None:
    for field in fields(given):
        value = getattr(given, field.name)
        if isinstance(value, int) and value < 1 and field.name != but:
            raise ValueError(f"{field.name} must be at least 1; got {value}")
        if isinstance(value, float) and not value > 0 and field.name != but:
            raise ValueError(f"{field.name} must be positive; got {value}")


@dataclass(frozen=True)
class Toy:
    """The second toy.

    Attributes:
      sizes: outer variables, in one run each.
      steps: iterations.
      record_every: iterations between records; divides every number of `CHECKED`.
      penalty: where it is constant; twice as large in a second run.
    """

    sizes: tuple[int, ...] = (100, 300, 1000, 10_000)
    steps: int = 20_000
    record_every: int = 200
    penalty: float = 10.0

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be at least one number from 1; got {self.sizes}")
        if any(steps % self.record_every for steps in (*CHECKED, self.steps)):
            raise ValueError(f"record_every must divide {CHECKED} and {self.steps}; got {self.record_every}")


@dataclass(frozen=True)
class FirstToy:
    """The first toy: some instances of each of those numbers of outer variables."""

    sizes: tuple[int, ...] = (100, 300, 1000)
    instances: int = 5

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not self.sizes or min(self.sizes) < 10:
            raise ValueError(f"sizes must be at least 10; got {self.sizes}")


@dataclass(frozen=True)
class Machine:
    """A support vector machine.

    Attributes:
      data: "breast_cancer", or "digits" by whether they are odd.
      training, validation: samples; the rest is for testing.
      corrupted: share of the training labels that are turned.
      steps: iterations.
      stretch: by which its outer variables are divided, so that they move further.
      penalties: of LV-HBA; of more than one, that of least validation loss on one more split.
      seeds: splits.
    """

    data: str = "breast_cancer"
    training: int = 300
    validation: int = 130
    corrupted: float = 0.0
    steps: int = 10_000
    stretch: float = 30.0
    penalties: tuple[float, ...] = (10.0,)
    seeds: int = 5

    def __post_init__(self) -> None:
        if not self.penalties or not min(self.penalties) > 0:
            raise ValueError(f"penalties must be at least one positive number; got {self.penalties}")
        if self.data not in SAMPLES:
            raise ValueError(f"data must be one of {tuple(SAMPLES)}; got {self.data!r}")
        _check_numbers(self, but="corrupted")
        if self.steps % 20:
            raise ValueError(f"steps must be a multiple of 20, the records of a run; got {self.steps}")
        if self.training + self.validation >= (samples := SAMPLES[self.data]):
            raise ValueError(
                f"training and validation must leave some of {samples} samples; "
                f"got {self.training} and {self.validation}"
            )
        if not 0 <= self.corrupted < 1:
            raise ValueError(f"corrupted must be from 0 and below 1; got {self.corrupted}")


@dataclass(frozen=True)
class Race:
    """All methods against each other, on digits with wrong labels and on the first toy.

    Attributes:
      tracks: on which methods race.
      methods: only these; all if there are none.
      training, validation: digits; multiples of `blocks`.
      corrupted: share of the training labels that are wrong.
      decay: of the softmax regression's weights, in the inner objective.
      stretch: by which outer variables are divided, so that they move further.
      blocks: into which both sets are cut for methods that draw batches.
      size: outer variables of the first toy.
      instances: on which methods race; searched is on one more.
      seconds: of the CPU, for a run of a method, and for each of the nine of its search.
      records: of a run.
    """

    tracks: tuple[str, ...] = TRACKS
    methods: tuple[str, ...] = ()
    training: int = 300
    validation: int = 300
    corrupted: float = 0.4
    decay: float = 3e-3
    stretch: float = 30.0
    blocks: int = 5
    size: int = 100
    instances: int = 3
    seconds: float = 1.0
    records: int = 20

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not self.tracks or not set(self.tracks) <= set(TRACKS):
            raise ValueError(f"tracks must be some of {TRACKS}; got {self.tracks}")
        known = {**of_smooth_problems(1.0), **of_equalities()}
        if unknown := sorted(set(self.methods) - set(known)):
            raise ValueError(f"methods must be among {', '.join(known)}; got {', '.join(unknown)}")
        if self.methods and "first_toy" in self.tracks and not {"LVHBA", "AiPOD"} <= set(self.methods):
            raise ValueError(f"methods must have LVHBA and AiPOD, which the first toy compares; got {self.methods}")
        if self.training % self.blocks or self.validation % self.blocks:
            raise ValueError(
                f"training and validation must be multiples of blocks = {self.blocks}; "
                f"got {self.training} and {self.validation}"
            )
        if self.training + self.validation >= SAMPLES["digits"]:
            raise ValueError(
                f"training and validation must leave some of {SAMPLES['digits']} samples; "
                f"got {self.training} and {self.validation}"
            )
        if not self.corrupted < 1:
            raise ValueError(f"corrupted must be below 1; got {self.corrupted}")


@dataclass(frozen=True)
class GroupLasso:
    """Regressions with `groups` groups of `width` features.

    Attributes:
      training: samples; as many for validation, and ten times as many for testing.
      steps: iterations of LV-HBA.
      tries: of the grid, and of random search.
      outer_steps: of implicit differentiation.
      seeds: data.
    """

    groups: int = 10
    width: int = 10
    training: int = 150
    steps: int = 20_000
    tries: int = 200
    outer_steps: int = 100
    seeds: int = 5

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.groups < 4 or self.width < 2:
            raise ValueError(f"groups must be at least 4 and width 2; got {self.groups} and {self.width}")
        if self.training <= self.groups * self.width:
            raise ValueError(f"training must be above {self.groups * self.width} coefficients; got {self.training}")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers, but for those of the race, which the clock decides too.

    Attributes:
      parts: that are run.
      seed: what all randomness starts from.
    """

    parts: tuple[str, ...] = PARTS
    toy: Toy = Toy()
    first_toy: FirstToy = FirstToy()
    machine: Machine = Machine()
    cleaning: Machine = Machine("digits", 300, 300, 0.4, penalties=(10.0, 50.0, 250.0))
    race: Race = Race()
    group_lasso: GroupLasso = GroupLasso()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"parts must be some of {PARTS}; got {self.parts}")


LAPTOP = Config()

PRESETS = {
    "smoke": Preset(
        replace(
            LAPTOP,
            toy=Toy((3, 5), 1000),
            first_toy=FirstToy((20, 30), 2),
            machine=Machine(training=30, validation=20, steps=40, seeds=2),
            cleaning=Machine("digits", 30, 20, 0.4, steps=40, penalties=(10.0, 50.0), seeds=2),
            race=Race(
                methods=("LVHBA", "ConjugateGradientAID", "AiPOD"),
                training=30,
                validation=20,
                size=20,
                instances=1,
                seconds=0.02,
                records=2,
            ),
            group_lasso=GroupLasso(4, 4, 20, 20, 3, 2, 2),
        ),
        "a minute on two cores, nearly all of it compilation",
    ),
    "laptop": Preset(LAPTOP, "about a quarter of an hour on two cores"),
    "paper": Preset(
        replace(
            LAPTOP,
            toy=Toy((100, 1000, 100_000), 100_000),
            first_toy=FirstToy(instances=20),
            machine=replace(LAPTOP.machine, steps=100_000, seeds=40),
            cleaning=replace(LAPTOP.cleaning, steps=100_000, seeds=20),
            race=replace(LAPTOP.race, instances=10, seconds=60.0),
            group_lasso=GroupLasso(60, 10, 900, 100_000, 1000, 1000, 20),
        ),
        "tens of splits, ten times the iterations, a minute for every run of the race",
    ),
}
