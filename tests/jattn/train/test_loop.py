"""The training loop against loops written by hand, and against itself: stopped, crashed, resumed."""

import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from orbax.checkpoint import CheckpointManager

from jattn.runs import Best, CheckpointError, Experiment, Preset, Run, RunError, Stopped, open_run
from jattn.runs.metrics import read_metrics
from jattn.train import Generated, NonFiniteError, Schedule, create_state, fit

FEATURES, BATCH = 5, 8
KEY = jax.random.key(11)

# Loops are compared in float32. One scanned program and one program a step may fuse differently, so values agree to a
# few units in the last place, magnified by at most a few tens of steps of well-conditioned descent.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module", autouse=True)
def programs_compiled_once(tmp_path_factory) -> Iterator[None]:
    """Every `fit` compiles anew, and most of these tests train the same few models, for a few steps only."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


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


# Against loops written by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Plain, Stateful])
def test_fit_is_the_bare_loop(tmp_path, build):
    schedule = Schedule(steps=23, steps_per_dispatch=5, evaluate_every=10, checkpoint_every=10)
    with toy_run(tmp_path / "run") as run:
        fitted = fit(
            run, "stage", build=build, loss=squared_error, optimiser=OPTIMISER, data=Generated(sample), key=KEY,
            schedule=schedule, evaluate=evaluate,
        )  # fmt: skip
        history = run.history("stage")
    recorded, model, optimiser = bare_loop(build, None, 23, KEY)
    assert int(fitted.state.step) == 23
    assert fitted.seeds is None
    assert_close(fitted.state, model, optimiser=optimiser)
    assert all(np.ptp(jax.tree.leaves(fitted.state.parameters)[i]) > 0 for i in range(2))
    # Metrics are means over each dispatch, the last of which is the remainder of three.
    assert set(history) == {"loss", "absolute", "eval/error", "eval/each"}
    for name in ("loss", "absolute"):
        steps, values = history[name]
        assert steps.tolist() == [5, 10, 15, 20, 23]
        dispatches = np.split(np.array([r[name] for r in recorded]), [5, 10, 15, 20])
        np.testing.assert_allclose(values, [d.mean() for d in dispatches], **CLOSE)
    assert history["eval/error"][0].tolist() == [0, 10, 20, 23]
    assert history["eval/each"][1].shape == (4, 3)
    np.testing.assert_allclose(history["eval/error"][1][-1], evaluate(model)["error"], **CLOSE)
    untrained = bare_loop(build, None, 0, KEY)[1]
    np.testing.assert_allclose(history["eval/error"][1][0], evaluate(untrained)["error"], **CLOSE)


def test_seeds_side_by_side_are_single_runs(tmp_path):
    seeds = 2
    schedule = Schedule(steps=13, steps_per_dispatch=5, evaluate_every=5, checkpoint_every=5)
    arguments = dict(build=Stateful, loss=squared_error, optimiser=OPTIMISER, data=Generated(sample), schedule=schedule)
    with toy_run(tmp_path / "many") as run:
        fitted = fit(run, "stage", key=KEY, seeds=seeds, evaluate=evaluate, **arguments)
        history = run.history("stage")
        shifts, x = jnp.arange(2.0), jnp.ones((2, FEATURES))
        predictions = fitted.map(lambda model, shift, x: model.inner(x + shift), shifts, shared=(x,))
    assert fitted.state.step.shape == ()
    assert history["loss"][1].shape == (3, seeds)
    assert history["eval/each"][1].shape == (4, seeds, 3)
    for seed, key in enumerate(jax.random.split(KEY, seeds)):
        with toy_run(tmp_path / f"single-{seed}") as run:
            single = fit(run, "stage", key=key, **arguments)
            alone = run.history("stage")
        many, one = (jax.tree.leaves(state.replace(step=None)) for state in (fitted.state, single.state))
        for a, b in zip(many, one, strict=True):
            np.testing.assert_allclose(words(a)[seed], words(b), **CLOSE)
        np.testing.assert_allclose(history["loss"][1][:, seed], alone["loss"][1], **CLOSE)
        alone_predicts = single.map(lambda model, x: model.inner(x), x + seed)
        np.testing.assert_allclose(predictions[seed], alone_predicts, **CLOSE)
    kernels = np.asarray(fitted.state.parameters["inner"]["kernel"][...])
    assert np.ptp(kernels, axis=0).min() > 0, "seeds must differ"


def test_a_stream_is_read_in_its_order(tmp_path):
    """Batches by their number in the random-access data set, which knows no iterator."""
    schedule = Schedule(steps=13, steps_per_dispatch=5, evaluate_every=5, checkpoint_every=5)
    with toy_run(tmp_path / "run") as run:
        fitted = fit(
            run, "stage", build=Plain, loss=squared_error, optimiser=OPTIMISER, data=map_stream(), key=KEY,
            schedule=schedule, seeds=2,
        )  # fmt: skip
    by_number = batched_rows()
    for seed, key in enumerate(jax.random.split(KEY, 2)):
        _, model, _ = bare_loop(Plain, (by_number[n] for n in range(13)), 13, key)
        assert_close(fitted.state, model, seed)


def test_every_checkpoint_is_the_state_of_its_step(tmp_path):
    """Buffers are overwritten by the next dispatch while a save is under way."""
    common = dict(build=Stateful, loss=squared_error, optimiser=OPTIMISER, data=Generated(sample), key=KEY, seeds=2)
    with toy_run(tmp_path / "run") as run:
        fit(run, "stage", schedule=Schedule(20, 5, 5, 5, keep=9), **common)
    with closing(CheckpointManager(tmp_path / "run" / "checkpoints" / "stage")) as saved:
        assert sorted(saved.all_steps()) == [5, 10, 15, 20]
        for steps in (5, 10, 15):
            with toy_run(tmp_path / f"short-{steps}") as run:
                short = fit(run, "stage", schedule=Schedule(steps, 5, 5, 5), **common).state
            leaves = saved.restore(steps)["state"]
            kernel = leaves["parameters"]["inner"]["kernel"]
            kernel = kernel["value"] if isinstance(kernel, dict) else kernel
            assert np.asarray(kernel).tobytes() == words(short.parameters["inner"]["kernel"][...]).tobytes()
            assert int(leaves["step"]) == steps


# Against itself: stopped, crashed, resumed --------------------------------------------------------------------------

DATA = {"generated": lambda: Generated(sample), "stream": filtered_stream}


def train_toy(run: Run, data: str = "generated", build=Stateful, steps: int = 28, seeds: int | None = 2):
    """Dispatches of 5; evaluations (10, 20), checkpoints (20) and the end (28) fall on different ones."""
    return fit(
        run, "stage", build=build, loss=squared_error, optimiser=OPTIMISER, data=DATA[data](), key=KEY,
        schedule=Schedule(steps, steps_per_dispatch=5, evaluate_every=10, checkpoint_every=20), seeds=seeds,
        evaluate=evaluate,
    )  # fmt: skip


@pytest.fixture(scope="module", params=list(DATA))
def uninterrupted(request, tmp_path_factory):
    """A run nobody touched: the kind of its data, its last state and its directory."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with toy_run(directory) as run:
        state = train_toy(run, request.param).state
    return request.param, state, directory


def assert_same_record(one: Path, other: Path) -> None:
    record = (one / "metrics" / "stage.jsonl").read_bytes()
    assert record.count(b"\n") == 6 + 4  # dispatches and evaluations
    assert record == (other / "metrics" / "stage.jsonl").read_bytes()


def newest_checkpoint(directory: Path) -> int:
    return max(int(path.name) for path in (directory / "checkpoints" / "stage").iterdir() if path.name.isdigit())


def test_a_run_stopped_twice_and_resumed_is_the_run_never_stopped(uninterrupted, tmp_path, caplog):
    data, state, whole = uninterrupted
    directory = tmp_path / "run"
    for step in (10, 25):
        stop_at(directory, step, lambda run: train_toy(run, data))
        assert newest_checkpoint(directory) == step, "the moment of stopping is checkpointed"
        assert json.loads((directory / "status.json").read_text())["status"] == "stopped"
    with caplog.at_level(logging.INFO, "jattn"), toy_run(directory) as run:
        resumed = train_toy(run, data).state
    assert "going on from the checkpoint of step 25" in caplog.text
    assert_same_bits(resumed, state)
    assert_same_record(directory, whole)


def test_a_run_crashed_twice_and_resumed_is_the_run_never_crashed(uninterrupted, tmp_path, caplog):
    data, state, whole = uninterrupted
    directory = tmp_path / "run"
    for step, resumes_from in ((10, 0), (25, 20)):
        crash_at(directory, step, lambda run: train_toy(run, data))
        # What was recorded after the checkpoint is forgotten when it is resumed.
        assert read_metrics(directory / "metrics" / "stage.jsonl")["loss"][0][-1] == step
        assert (newest_checkpoint(directory) if resumes_from else 0) == resumes_from
        with open(directory / "metrics" / "stage.jsonl", "ab") as file:
            file.write(b'{"step":')  # the line under way
    with caplog.at_level(logging.INFO, "jattn"), toy_run(directory) as run:
        resumed = train_toy(run, data).state
    assert "going on from the checkpoint of step 20" in caplog.text
    assert_same_bits(resumed, state)
    assert_same_record(directory, whole)


def test_a_finished_stage_is_read_back_not_trained_again(uninterrupted, tmp_path):
    data, state, whole = uninterrupted
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    with toy_run(directory, [At(0, lambda: pytest.fail("trained or evaluated again"))]) as run:
        again = train_toy(run, data).state
    assert_same_bits(again, state)
    assert_same_record(directory, whole)


def test_a_signal_between_any_two_looks_is_checkpointed(tmp_path):
    """The loop may ask several times whether to stop; wherever the signal falls between, the last step is saved."""

    class Falls:
        signal = int(signal.SIGTERM)

        def __init__(self, look: int):
            self.left = look

        def __bool__(self) -> bool:
            self.left -= 1
            return self.left < 0

    stopped = []
    for look in range(5):
        directory = tmp_path / f"run-{look}"
        with suppress(Stopped), toy_run(directory) as run:
            run.stop_request = Falls(look)
            train_toy(run, build=Plain, seeds=None, steps=15)
        record = read_metrics(directory / "metrics" / "stage.jsonl")["loss"][0]
        assert newest_checkpoint(directory) == record[-1]
        stopped.append(int(record[-1]))
    assert len(set(stopped)) > 2


def test_a_spoiled_newest_checkpoint_costs_only_work(uninterrupted, tmp_path, caplog):
    data, state, whole = uninterrupted
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    newest = directory / "checkpoints" / "stage" / "28"
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-3])
    with caplog.at_level(logging.INFO, "jattn"), toy_run(directory) as run:
        resumed = train_toy(run, data).state
    assert f"{newest} does not match its digest; the one before it is used" in caplog.text
    assert caplog.text.count("going on from the checkpoint of step 20") == 1
    assert_same_bits(resumed, state)
    assert_same_record(directory, whole)


def test_the_best_checkpoint_stays(tmp_path):
    """The error of a model driven away from its optimum rises, so the first evaluated checkpoint is the best."""
    with toy_run(tmp_path / "run") as run:
        fit(
            run, "stage", build=Plain, loss=lambda model, batch: (-squared_error(model, batch)[0], {}),
            optimiser=optax.sgd(0.05), data=Generated(sample), key=KEY, evaluate=evaluate,
            schedule=Schedule(30, 5, 5, 5, keep=1, best=Best("eval/error")),
        )  # fmt: skip
        steps, error = run.history("stage")["eval/error"]
    assert steps[1:][error[1:].argmin()] == 5
    kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints" / "stage").iterdir() if p.name.isdigit())
    assert kept == [5, 30]


# What must be refused, or told ------------------------------------------------------------------------------------


class Fragile(nnx.Module):
    """A model whose gradient in `brittle` alone is not a number at one step, while its loss stays finite.

    √(brittle·0 + alive) has value 1 and gradient 0 while alive is 1, and gradient 0/0 when alive is 0.
    """

    def __init__(self, rngs: nnx.Rngs, fatal_step: int = 0, fatal_tag: float | None = None):
        self.linear = nnx.Linear(FEATURES, 1, rngs=rngs)
        self.brittle = nnx.Param(jax.random.normal(rngs.params(), (3,)))
        self.tag = nnx.Variable(jax.random.uniform(rngs.params(), ()))
        struck = True if fatal_tag is None else self.tag[...] == jnp.float32(fatal_tag)
        self.fatal_step = nnx.Variable(jnp.where(struck, jnp.int32(fatal_step), -1))
        self.seen = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        return self.linear(x)[:, 0]


def fragile_loss(model, batch):
    model.seen[...] += 1
    alive = jnp.where(model.seen[...] == model.fatal_step[...], 0.0, 1.0)
    penalty = jnp.sqrt(model.brittle[...] * 0.0 + alive).sum()
    return squared_error(model, batch)[0] + 0.0 * penalty + 0.1 * jnp.sum(model.brittle[...] ** 2), {}


def fit_fragile(run: Run, fatal_step: int, fatal_tag=None, *, seeds=None, steps=20, optimiser=OPTIMISER):
    return fit(
        run, "stage", build=lambda rngs: Fragile(rngs, fatal_step, fatal_tag), loss=fragile_loss,
        optimiser=optimiser, data=Generated(sample), key=KEY, seeds=seeds,
        schedule=Schedule(steps, steps_per_dispatch=5, evaluate_every=5, checkpoint_every=10),
    )  # fmt: skip


def restore(directory: Path, build, seeds: int | None = None):
    """The state of the newest checkpoint."""
    with toy_run(directory) as run, run.stage("stage") as stage:
        restored = stage.restore(create_state(build, OPTIMISER, KEY, seeds)[1])
    assert restored is not None
    return restored.state


# In the middle of a dispatch; as its first step, right after a checkpoint; as the very first step.
@pytest.mark.parametrize("fatal_step", [14, 11, 1])
def test_not_a_number_stops_training_at_the_last_finite_state(tmp_path, fatal_step):
    directory = tmp_path / "run"
    leaves = "gradient of brittle"
    said = (
        f"^stage stage, step {fatal_step}: not finite: {leaves}; "
        f"the state after step {fatal_step - 1} is the newest checkpoint$"
    )
    for _ in range(2):  # resuming meets the same step, says the same and spoils nothing
        with pytest.raises(NonFiniteError, match=said), toy_run(directory) as run:
            fit_fragile(run, fatal_step)
        status = json.loads((directory / "status.json").read_text())
        assert status["status"] == "failed"
        assert leaves in status["detail"]
        assert newest_checkpoint(directory) == fatal_step - 1
    # The state that was kept is what a loop without the fatal step arrives at.
    kept = restore(directory, lambda rngs: Fragile(rngs))
    _, model, optimiser = bare_loop(lambda rngs: Fragile(rngs, fatal_step), None, fatal_step - 1, KEY, fragile_loss)
    assert int(kept.step) == fatal_step - 1
    assert_close(kept, model, optimiser=optimiser)
    assert all(np.isfinite(words(leaf)).all() for leaf in jax.tree.leaves(kept.parameters))


def test_the_seed_that_left_the_finite_numbers_is_named(tmp_path):
    tags = [float(Fragile(nnx.Rngs(jax.random.split(key)[0])).tag[...]) for key in jax.random.split(KEY, 3)]
    directory = tmp_path / "run"
    with (
        pytest.raises(NonFiniteError, match=r"step 8: not finite: gradient of brittle \(seeds \[1\]\)"),
        toy_run(directory) as run,
    ):
        fit_fragile(run, 8, tags[1], seeds=3)
    kept = restore(directory, Fragile, seeds=3)
    assert int(kept.step) == 7
    for seed, key in enumerate(jax.random.split(KEY, 3)):  # all seeds stand where the loop stopped
        _, model, _ = bare_loop(lambda rngs: Fragile(rngs, 8, tags[1]), None, 7, key, fragile_loss)
        assert_close(kept, model, seed)


def test_a_parameter_is_named_where_all_gradients_are_finite(tmp_path):
    def brittle_only(parameters):
        return jax.tree_util.tree_map_with_path(lambda path, _: "brittle" in jax.tree_util.keystr(path), parameters)

    overflowing = optax.chain(optax.masked(optax.scale(1e38), brittle_only), optax.scale(-1e30))
    with (
        pytest.raises(NonFiniteError, match="step 1: not finite: parameter brittle; the state after step 0"),
        toy_run(tmp_path / "run") as run,
    ):
        fit_fragile(run, 999, optimiser=overflowing)


def test_a_loss_that_is_infinite_is_named(tmp_path):
    def loss(model, batch):
        return squared_error(model, batch)[0] + jnp.where(batch["fatal"], jnp.inf, 0.0), {}

    rows = [{"x": ROWS[:8], "y": ROWS[:8, 0], "fatal": np.bool_(n == 6)} for n in range(12)]
    with (
        pytest.raises(NonFiniteError, match=r"step 7: not finite: loss; the state after step 6"),
        toy_run(tmp_path / "run") as run,
    ):
        fit(
            run, "stage", build=Plain, loss=loss, optimiser=OPTIMISER, key=KEY, schedule=Schedule(12, 4, 4, 4),
            data=iter(grain.MapDataset.source(rows).to_iter_dataset()),
        )  # fmt: skip


def test_a_stream_is_set_back_to_the_batch_that_did_it(tmp_path):
    """The checkpoint's data position is that of the poisoned batch, not of the end of the dispatch."""
    poisoned = 8

    def poison(number: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return batch | {"y": batch["y"] * np.float32(np.nan)} if number == poisoned else batch

    def stream() -> grain.DatasetIterator:
        return iter(batched_rows().map_with_index(poison).to_iter_dataset(READ))

    def train(run: Run, data: grain.DatasetIterator, steps: int):
        return fit(
            run, "stage", build=Plain, loss=squared_error, optimiser=OPTIMISER, data=data, key=KEY, seeds=2,
            schedule=Schedule(steps, steps_per_dispatch=5, evaluate_every=5, checkpoint_every=5),
        )  # fmt: skip

    with pytest.raises(NonFiniteError, match="step 9: not finite: loss, "), toy_run(tmp_path / "run") as run:
        train(run, stream(), 20)
    assert newest_checkpoint(tmp_path / "run") == poisoned
    data = stream()
    with toy_run(tmp_path / "run") as run:
        fitted = train(run, data, poisoned)
    by_number = batched_rows()
    for seed, key in enumerate(jax.random.split(KEY, 2)):
        _, model, _ = bare_loop(Plain, (by_number[n] for n in range(poisoned)), poisoned, key)
        assert_close(fitted.state, model, seed)
    assert np.isnan(next(data)["y"]).all(), "the next batch is the poisoned one"
    np.testing.assert_array_equal(next(data)["x"], by_number[poisoned + 1]["x"])


def test_a_stream_that_ends_early_says_so(tmp_path):
    short = grain.MapDataset.source(ROWS).map(with_label).batch(BATCH, drop_remainder=True)
    with (
        pytest.raises(ValueError, match="data ended after 6 batches; the schedule asks for 20"),
        toy_run(tmp_path / "run") as run,
    ):
        fit(
            run, "stage", build=Plain, loss=squared_error, optimiser=OPTIMISER, data=iter(short.to_iter_dataset()),
            key=KEY, schedule=Schedule(20, 4, 4, 4),
        )  # fmt: skip


def test_a_checkpoint_of_another_config_is_refused_with_its_fields(tmp_path):
    with toy_run(tmp_path / "run") as run:
        train_toy(run, build=Plain, steps=3)
    # Somebody edits the frozen config, so that the directory agrees and only the checkpoint can tell.
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"width": 4', '"width": 5'))
    with (
        pytest.raises(RunError, match=r"step 3 of stage stage.*another config:\n  width: checkpoint 4, run 5$"),
        toy_run(tmp_path / "run", config=Config(width=5)) as run,
    ):
        train_toy(run, build=Plain, steps=6)


def test_a_checkpoint_of_another_model_is_refused_with_its_leaves(tmp_path):
    with toy_run(tmp_path / "run") as run:
        train_toy(run, build=Plain, steps=3)
    with (
        pytest.raises(CheckpointError, match=r"parameters\.norm\.scale.*: checkpoint None, code float32\[2, 7\]"),
        toy_run(tmp_path / "run") as run,
    ):
        train_toy(run, build=Stateful, steps=3)
    assert newest_checkpoint(tmp_path / "run") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch must be at least 1; got 0"),
        ({"evaluate_every": -5}, "evaluate_every must be at least 1; got -5"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1; got 0"),
        ({"keep": 0}, "keep must be at least 1; got 0"),
        ({"evaluate_every": 75}, "evaluate_every must be a multiple of steps_per_dispatch = 50; got 75"),
        ({"checkpoint_every": 20}, "checkpoint_every must be a multiple of steps_per_dispatch = 50; got 20"),
        (
            {"checkpoint_every": 750, "best": Best("eval/error")},
            "checkpoint_every must be a multiple of evaluate_every = 500 where the best .* got 750",
        ),
    ],
)
def test_a_schedule_that_makes_no_sense_names_its_argument(arguments, said):
    with pytest.raises(ValueError, match=said):
        Schedule(**{"steps": 100, **arguments})


@pytest.mark.parametrize("evaluation", [None, evaluate])
def test_a_best_metric_that_is_never_measured_is_told_before_training(tmp_path, evaluation):
    with (
        pytest.raises(ValueError, match=r"best\.metric must be one of .*; got 'error'"),
        toy_run(tmp_path / "run", [At(1, lambda: pytest.fail("trained"))]) as run,
    ):
        fit(
            run, "stage", build=Plain, loss=squared_error, optimiser=OPTIMISER, data=Generated(sample), key=KEY,
            schedule=Schedule(10, 5, 5, 5, best=Best("error")), evaluate=evaluation,
        )  # fmt: skip


class Bare(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.constant = nnx.Variable(jnp.ones(3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"build": Bare}, "build must make a model with parameters"),
    ],
)
def test_fit_refuses_what_it_cannot_train(tmp_path, change, said):
    arguments = {"build": Plain, "seeds": None} | change
    with pytest.raises(ValueError, match=said), toy_run(tmp_path / "run") as run:
        fit(
            run, "stage", loss=squared_error, optimiser=OPTIMISER, data=Generated(sample), key=KEY,
            schedule=Schedule(10, 5, 5, 5), **arguments,
        )  # fmt: skip
