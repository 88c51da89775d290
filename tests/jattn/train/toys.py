"""Small models, losses and streams, and a loop written by hand to compare with."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jattn.runs import Experiment, Preset, Run, Stopped, open_run
from jattn.train import Generated, Schedule, fit

FEATURES, BATCH = 5, 8
KEY = jax.random.key(11)

# Loops are compared in float32. One scanned program and one program a step may fuse differently, so values agree to a
# few units in the last place, magnified by at most a few tens of steps of well-conditioned descent.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


@dataclass(frozen=True)
class Config:
    width: int = 4


EXPERIMENT = Experiment("toy", "a toy", None, {"smoke": Preset(Config(), "seconds")}, lambda config, run: None)


class At:
    """A metric writer that does something, once, when the record has reached a step: what a signal or a crash does."""

    def __init__(self, step: int, act: Callable[[], None]):
        self.step, self.act = step, act

    def write(self, stage: str, step: int, scalars) -> None:
        if step >= self.step:
            self.step = sys.maxsize
            self.act()

    def close(self) -> None: ...


@contextmanager
def toy_run(directory: Path, trackers: Sequence[At] = (), config: Config = Config()) -> Iterator[Run]:
    with open_run(
        EXPERIMENT, "smoke", config, directory, trackers=[lambda _, at=at: at for at in trackers], quiet=True
    ) as run:
        yield run


class Crash(Exception):
    """Stands for whatever ends a process."""


def stop_at(directory: Path, step: int, train: Callable[[Run], object]) -> None:
    """Train until a SIGTERM that arrives once `step` is recorded."""
    terminate = At(step, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="jattn resume"), toy_run(directory, [terminate]) as run:
        train(run)


def crash_at(directory: Path, step: int, train: Callable[[Run], object]) -> None:
    def crash() -> None:
        raise Crash

    with suppress(Crash), toy_run(directory, [At(step, crash)]) as run:
        train(run)
        pytest.fail("did not crash")


# Models, losses, data ---------------------------------------------------------------------------------------------


class Plain(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.inner = nnx.Linear(FEATURES, 7, rngs=rngs)
        self.outer = nnx.Linear(7, 1, rngs=rngs)

    def __call__(self, x):
        return self.outer(jnp.tanh(self.inner(x)))[:, 0]


class Stateful(nnx.Module):
    """Has what training must carry besides parameters: running statistics and the counter of a random stream."""

    def __init__(self, rngs: nnx.Rngs):
        # A bias before the normalisation has a gradient of nothing but rounding, which Adam would blow up.
        self.inner = nnx.Linear(FEATURES, 7, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(7, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.outer = nnx.Linear(7, 1, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(nnx.relu(self.norm(self.inner(x)))))[:, 0]


def squared_error(model, batch):
    difference = model(batch["x"]) - batch["y"]
    return jnp.mean(difference**2), {"absolute": jnp.mean(jnp.abs(difference))}


@jax.jit
def sample(key) -> dict[str, jax.Array]:
    x = jax.random.normal(key, (BATCH, FEATURES))
    return {"x": x, "y": jnp.sin(x).sum(axis=1)}


ROWS = np.random.default_rng(0).normal(size=(50, FEATURES)).astype(np.float32)


def with_label(row: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": row, "y": np.sin(row).sum()}


def batched_rows() -> grain.MapDataset:
    """Shuffled anew in every pass; 50 rows in batches of 8 run over the ends of passes."""
    return grain.MapDataset.source(ROWS).seed(3).shuffle().repeat().map(with_label).batch(BATCH)


READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


def map_stream() -> grain.DatasetIterator:
    return iter(batched_rows().to_iter_dataset(READ))


def filtered_stream() -> grain.DatasetIterator:
    """Batches whose place in the source cannot be computed from their number."""
    rows = grain.MapDataset.source(ROWS).seed(4).shuffle().repeat().to_iter_dataset(READ)
    return iter(rows.filter(lambda row: bool(row[0] > -0.5)).map(with_label).batch(BATCH))


def evaluate(model) -> dict[str, jax.Array]:
    held_out = sample(jax.random.key(99))
    prediction = Plain.__call__(model, held_out["x"]) if isinstance(model, Plain) else model.outer.bias[...]
    return {"error": jnp.mean((prediction - held_out["y"]) ** 2), "each": (prediction - held_out["y"])[:3]}


OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.05, 60)))


def bare_loop(build, batches, steps: int, key, loss=squared_error, optimiser=OPTIMISER):
    """Flax's own stateful way to train, one jitted step at a time: no scan, no split, no merge.

    Returns what was recorded at every step, and the model and optimiser after the last.
    """
    model_key, data_key = jax.random.split(key)
    model = build(nnx.Rngs(model_key))
    optimiser = nnx.Optimizer(model, optimiser, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimiser, batch):
        (value, metrics), gradient = nnx.value_and_grad(loss, has_aux=True)(model, batch)
        optimiser.update(model, gradient)
        return {"loss": value, **metrics}

    recorded = []
    for n in range(steps):
        batch = next(batches) if batches is not None else sample(jax.random.fold_in(data_key, n))
        recorded.append(jax.device_get(step(model, optimiser, batch)))
    return recorded, model, optimiser


def words(leaf) -> np.ndarray:
    """A leaf as numpy; a typed key as its words."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same_bits(one, other) -> None:
    paths_one, paths_other = (jax.tree_util.tree_leaves_with_path(tree) for tree in (one, other))
    assert len(paths_one) > 3
    assert [path for path, _ in paths_one] == [path for path, _ in paths_other]
    for (path, a), (_, b) in zip(paths_one, paths_other, strict=True):
        assert words(a).dtype == words(b).dtype, path
        assert words(a).tobytes() == words(b).tobytes(), jax.tree_util.keystr(path)


def assert_close(state, model, seed=None, optimiser=None) -> None:
    """The state's arrays (of one seed) are the hand-trained model's."""
    pairs = [(state.parameters, nnx.state(model, nnx.Param)), (state.others, nnx.state(model, nnx.Not(nnx.Param)))]
    if optimiser is not None:
        pairs.append((state.optimiser, nnx.as_pure(optimiser.opt_state)))
    for ours, theirs in pairs:
        ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(words(a) if seed is None else words(a)[seed], words(b), **CLOSE)


DATA = {"generated": lambda: Generated(sample), "stream": filtered_stream}


def train_toy(run: Run, data: str = "generated", build=Stateful, steps: int = 28, seeds: int | None = 2):
    """Dispatches of 5; evaluations (10, 20), checkpoints (20) and the end (28) fall on different ones."""
    return fit(
        run, "stage", build=build, loss=squared_error, optimiser=OPTIMISER, data=DATA[data](), key=KEY,
        schedule=Schedule(steps, steps_per_dispatch=5, evaluate_every=10, checkpoint_every=20), seeds=seeds,
        evaluate=evaluate,
    )  # fmt: skip


def newest_checkpoint(directory: Path) -> int:
    return max(int(path.name) for path in (directory / "checkpoints" / "stage").iterdir() if path.name.isdigit())
