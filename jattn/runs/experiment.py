"""What an experiment is, and where experiments are found."""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jattn.runs.directory import Run

EXPERIMENTS_PACKAGE = "experiments"
"""Where `discover` looks. It stands above this package, so it is found by name and never imported from here."""


@dataclass(frozen=True)
class Paper:
    """The publication an experiment reproduces."""

    title: str
    authors: str
    venue: str
    arxiv: str


@dataclass(frozen=True)
class Preset:
    """A named config and what running it costs, in words: time and machine."""

    config: Any
    cost: str


@dataclass(frozen=True)
class Experiment:
    """A paper's reproduction: a frozen config dataclass with presets, and a function that runs it.

    Attributes:
      name: what `jattn run` takes; the module's own name, or the path of a file outside the package.
      summary: one line.
      paper: the publication, or None for an experiment of one's own.
      presets: by name. `smoke` takes seconds, `laptop` (the default) minutes on two cores, `paper` is the
        publication's own scale. All share one config dataclass.
      run: does the work, given the config and the open run directory.
    """

    name: str
    summary: str
    paper: Paper | None
    presets: Mapping[str, Preset]
    run: Callable[[Any, "Run"], None]

    def __post_init__(self) -> None:
        if not self.presets:
            raise ValueError(f"presets of experiment {self.name!r} must name at least one config; got none")
        kinds = {type(preset.config) for preset in self.presets.values()}
        if len(kinds) != 1 or not is_dataclass(next(iter(kinds))):
            names = sorted(kind.__name__ for kind in kinds)
            raise TypeError(f"presets of experiment {self.name!r} must share one dataclass; got {names}")

    @property
    def config_type(self) -> type:
        return type(next(iter(self.presets.values())).config)

    @property
    def default_preset(self) -> str:
        return "laptop" if "laptop" in self.presets else next(iter(self.presets))


def discover() -> dict[str, Experiment]:
    """Every experiment of the `experiments` package, by name."""
    package = importlib.import_module(EXPERIMENTS_PACKAGE)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: _experiment_of(importlib.import_module(f"{EXPERIMENTS_PACKAGE}.{name}"), name) for name in names}


def load_experiment(name: str) -> Experiment:
    """An experiment by name, or from a Python file outside the package that defines `EXPERIMENT`.

    Raises:
      ValueError: no such experiment or file; the message lists near names.
    """
    if name.endswith(".py"):
        return _load_file(Path(name))
    package = importlib.import_module(EXPERIMENTS_PACKAGE)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    if name in names:
        return _experiment_of(importlib.import_module(f"{EXPERIMENTS_PACKAGE}.{name}"), name)
    near = get_close_matches(name, names, n=3)
    suggestion = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    raise ValueError(f"experiment {name!r} is not known; {suggestion} (a file of your own must end in .py)")


def _load_file(path: Path) -> Experiment:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"experiment file {path} does not exist")
    module_name = f"jattn_user_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"experiment file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up while they are being defined
    spec.loader.exec_module(module)
    return replace(_experiment_of(module, str(path)), name=str(path))  # by which resuming finds it again


def _experiment_of(module: Any, name: str) -> Experiment:
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{name} must define EXPERIMENT = jattn.runs.Experiment(...); got {experiment!r}")
    return experiment
