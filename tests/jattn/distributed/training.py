"""Training on four virtual devices and on one; prints how far apart they end, as JSON."""

import json
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from jattn.distributed import batch_mesh
from jattn.runs import Experiment, Preset, Run, Stopped, open_run
from jattn.train import Fitted, Generated, Schedule, fit

STEPS = 20


@dataclass(frozen=True)
class Config:
    """Nothing to choose."""


class Model(nnx.Module):
    """Has running statistics and a count besides parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.inner = nnx.Linear(5, 7, rngs=rngs)
        self.outer = nnx.Linear(7, 1, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(7))
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(self.inner(x))
        answer = self.outer(hidden - self.mean[...])[:, 0]
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(hidden.mean(axis=0))
        self.calls[...] += 1
        return answer


def sample(key: jax.Array) -> dict[str, jax.Array]:
    x = jax.random.normal(key, (8, 5))
    return {"x": x, "y": jnp.sin(x).sum(axis=1)}


def loss(model: Model, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    error = model(batch["x"]) - batch["y"]
    return (error**2).mean(), {"absolute": jnp.abs(error).mean()}


def train(run: Run, mesh: Mesh | None, batch: Any = sample) -> Fitted:
    return fit(
        run, "stage", build=Model, loss=loss, optimiser=optax.adam(0.01), data=Generated(batch),
        key=jax.random.key(1), schedule=Schedule(STEPS, 5, 10, 10), seeds=2, mesh=mesh,
        evaluate=lambda model: {"weight": jnp.abs(model.inner.kernel[...]).mean()},
    )  # fmt: skip


class StopAt:
    """A metric writer that asks the run to stop at a step."""

    def __init__(self, step: int):
        self.step = step

    def write(self, stage: str, step: int, scalars: Any) -> None:
        if step == self.step:
            self.step = -1
            signal.raise_signal(signal.SIGTERM)

    def close(self) -> None: ...


def opened(directory: Path, *trackers: StopAt) -> Any:
    experiment = Experiment("toy", "a toy", None, {"smoke": Preset(Config(), "seconds")}, lambda config, run: None)
    return open_run(experiment, "smoke", Config(), directory, trackers=[lambda _, t=t: t for t in trackers], quiet=True)


def complaint(function: Any) -> str:
    try:
        function()
    except ValueError as error:
        return str(error)
    return "none"


def main(directory: Path) -> dict[str, Any]:
    with opened(directory / "one") as run:
        one = train(run, None)
        told = run.history("stage")
    mesh = batch_mesh(4)
    with opened(directory / "many") as run:
        many = train(run, mesh)
        told_many = run.history("stage")
    try:
        with opened(directory / "stopped", StopAt(10)) as run:
            train(run, mesh)
    except Stopped:
        pass
    with opened(directory / "stopped") as run:
        resumed = train(run, mesh)

    def apart(a: Any, b: Any) -> float:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()) for x, y in pairs)

    def moved(fitted: Fitted) -> Any:
        return fitted.state.parameters, fitted.state.others

    def uneven(key: jax.Array) -> dict[str, jax.Array]:
        return jax.tree.map(lambda array: array[:6], sample(key))

    with opened(directory / "uneven") as run:
        refused = complaint(lambda: train(run, mesh, uneven))
    return {
        "steps": int(many.state.step),
        "state": apart(moved(one), moved(many)),
        "metrics": max(apart(told[name][1], told_many[name][1]) for name in told),
        "resumed": apart(moved(many), moved(resumed)),
        "uneven": refused,
        "too many": complaint(lambda: batch_mesh(9)),
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(main(Path(name))))
