"""A run that does nothing, for tests of what surrounds runs."""

from dataclasses import dataclass
from pathlib import Path

from jattn.runs import Bar, Claim, Experiment, Preset, open_run


@dataclass(frozen=True)
class Optimiser:
    rate: float = 0.1


@dataclass(frozen=True)
class Config:
    heads: tuple[int, ...] = (1, 2)
    optimiser: Optimiser = Optimiser()


EXPERIMENT = Experiment("toy", "a toy", None, {"smoke": Preset(Config(), "seconds")}, lambda config, run: None)
CLAIM = Claim("first", "The loss is small.", "0.5", Bar(high=1.0), "an untrained model")


def toy_run(directory: Path, config: Config = Config(), experiment: Experiment = EXPERIMENT, **options):
    return open_run(experiment, "smoke", config, directory, quiet=True, **options)


def tree(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
