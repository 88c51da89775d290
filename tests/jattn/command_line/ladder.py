"""A small experiment of a user's own, and what running a command on it gives."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from jattn import cli

LADDER = '''
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
from matplotlib.figure import Figure

from jattn.runs import Bar, Claim, Experiment, Preset


@dataclass(frozen=True)
class Wall:
    """What it leans on.

    Attributes:
      lean: by how much.
    """

    lean: float = 0.2


@dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      steps: how many rungs.
      rate: how far apart they are.
      loud: whether to say so.
      lengths: where to measure.
      shape: straight or bent.
      wall: what it leans on.
    """

    steps: int = 3
    rate: float = 0.5
    loud: bool = False
    lengths: tuple[int, ...] = (10, 20)
    shape: Literal["straight", "bent"] = "straight"
    wall: Wall = Wall()

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")


RISES = Claim("rises", "height | rung", "figure 2", Bar(low=1.0), "a ladder of [no] rungs")
FALLS = Claim("falls", "a bent ladder leans", "section 4", Bar(low=0.0), "a wall")


def run(config, run):
    with run.stage("climb") as stage:
        restored = stage.restore({"height": jnp.zeros(())})
        for step in range(restored.step if restored else 0, config.steps):
            with open(run.directory / "worked", "a") as worked:
                worked.write(f"{step} ")
            height = config.rate * (step + 1)
            stage.metrics.write(step, {"height": [height, height + 1], "circuit": [[1.0, 2.0]]})
            stage.save(step + 1, {"height": jnp.float32(height)}, None, {})
            if Path("fail").exists():
                raise ValueError("a rung broke")
            if step == 1 and Path("stop").exists():
                os.kill(os.getpid(), signal.SIGTERM)
            run.stop_if_asked()
    run.save_results({name: [type(getattr(config, name)).__name__, value] for name, value in asdict(config).items()})
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot(range(config.steps))
    run.figure("ladder", figure, "Height by rung.")
    run.settle(RISES, [2.0, 2.1, 2.2], [0.0, 0.1, 0.05])
    run.settle(FALLS, 1.0 if config.shape == "bent" else -1.0, -2.0, finding="it is straight")


PRESETS = {"smoke": Preset(Config(steps=2), "an instant"), "laptop": Preset(Config(), "a moment")}
EXPERIMENT = Experiment("ladder", "How high a ladder goes.", None, PRESETS, run)
'''


class Result(NamedTuple):
    status: int
    out: str
    err: str


@dataclass
class Shell:
    """Runs `jattn ARGUMENTS` in this process."""

    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Result:
        self.capture.readouterr()
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
        assert isinstance(status, int)
        return Result(status, *self.capture.readouterr())


def contents(path: Path) -> dict:
    return json.loads(path.read_text())


def only_run(root: Path = Path("runs")) -> Path:
    (run,) = root.iterdir()
    return run
