"""Real runs, really killed: what comes back is what would have been, byte for byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import CheckpointManager

import jattn

STEPS = 200
STAGES = ("attention", "network")
EXPERIMENT = '''
"""Two stages: attention on generated prompts, then a network with a random stream on a Grain data stream."""

from dataclasses import dataclass

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from jattn.mechanisms.multi_head import MultiHeadAttention
from jattn.data.linear_prompts import LinearPrompts, prompt_tokens, sample_prompts
from jattn.runs import Bar, Best, Claim, Experiment, Preset
from jattn.train import Generated, Schedule, fit

WORLD = LinearPrompts(3, 8, 0.1, 0.0, ((0, 3),))
CLAIM = Claim("learns", "The last loss is small.", "none", Bar(high=1.0), "the first loss")


@dataclass(frozen=True)
class Config:
    steps: int = 200


class Regressor(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = MultiHeadAttention(4, 2, 1, rngs=rngs)

    def __call__(self, prompt):
        tokens, query = prompt_tokens(prompt)
        return self.attention(query, tokens)[:, 0]


def loss(model, prompt):
    return jnp.mean((model(prompt) - prompt.target) ** 2), {}


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.inner = nnx.Linear(3, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.outer = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(nnx.relu(self.inner(x))))[:, 0]


def network_loss(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}


def stream():
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    data = grain.MapDataset.source(rows).seed(1).shuffle().repeat().map(lambda x: {"x": x, "y": x.sum()}).batch(16)
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def run(config, run):
    held_out = jax.jit(lambda key: sample_prompts(WORLD, 256, key))(jax.random.key(7))
    common = dict(optimiser=optax.adam(3e-3), seeds=2)
    first = fit(
        run, "attention", build=Regressor, loss=loss, data=Generated(lambda key: sample_prompts(WORLD, 64, key)),
        key=jax.random.key(0), evaluate=lambda model: {"error": loss(model, held_out)[0]},
        schedule=Schedule(config.steps, 5, 10, 10, keep=2, best=Best("eval/error")), **common,
    )
    fit(
        run, "network", build=Network, loss=network_loss, data=stream(), key=jax.random.key(1),
        schedule=Schedule(config.steps, 5, 10, 10, keep=2), **common,
    )
    steps, losses = run.history("attention")["loss"]
    run.settle(CLAIM, losses[-1], losses[0] + 10)
    errors = first.map(lambda model, prompt: loss(model, prompt)[0], shared=(held_out,))
    run.save_results({"errors": np.asarray(errors).tolist()})
    figure = Figure()
    figure.subplots().plot(steps, losses)
    run.figure("losses", figure, "Losses.")


EXPERIMENT = Experiment("toy", "two stages", None, {"smoke": Preset(Config(), "seconds")}, run)
'''


@dataclass
class Site:
    """Where the experiment's file lies and how it is run: as a user does, in a process of its own.

    Attributes:
      programs: where compiled programs are kept from process to process, to save time; None to compile anew.
    """

    file: Path
    programs: Path | None

    def command(self, directory: Path) -> list[str]:
        """Begin the run in this directory, or go on with it."""
        begun = (directory / "config.json").exists()  # a process may be killed before it has frozen its config
        task = ["resume", str(directory)] if begun else ["run", str(self.file), "--dir", str(directory)]
        return [sys.executable, "-m", "jattn.cli", *task, "--track"]

    def start(self, directory: Path) -> subprocess.Popen[str]:
        paths = [str(Path(jattn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"COLUMNS": "300", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if self.programs is not None:
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(self.programs),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
        return subprocess.Popen(
            self.command(directory),
            cwd=self.file.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, directory: Path) -> str:
        """Run or resume to the end; what it said."""
        with self.start(directory) as process:
            said, _ = process.communicate()
        assert process.returncode == 0, said
        assert status_of(directory) == "completed"
        return said


def status_of(directory: Path) -> str:
    return json.loads((directory / "status.json").read_text())["status"]


def recorded_steps(directory: Path, stage: str) -> list[int]:
    """Steps of the training metrics in a stage's record, a line cut short left out."""
    path = directory / "metrics" / f"{stage}.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [row["step"] for row in map(json.loads, lines) if "loss" in row]


def kept_steps(directory: Path, stage: str) -> list[int]:
    folder = directory / "checkpoints" / stage
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def checkpoint(directory: Path, stage: str, step: int) -> dict[str, Any]:
    """Every leaf of a checkpoint by its name, as dtype, shape and bytes, read by Orbax alone; and its JSON."""
    with closing(CheckpointManager(directory / "checkpoints" / stage)) as manager:
        saved = manager.restore(step)
    leaves: dict[str, Any] = {"sidecar": saved["sidecar"], "about": saved["about"]}
    for path, leaf in jax.tree_util.tree_leaves_with_path(saved["state"]):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        leaves[jax.tree_util.keystr(path, simple=True)] = (str(array.dtype), array.shape, array.tobytes())
    return leaves


def outcome(directory: Path) -> dict[str, Any]:
    """All that a run leaves that does not tell when and where it ran."""
    names = ["config.json", "claims.json", "results.json"]
    names += [f"metrics/{stage}.jsonl" for stage in STAGES] + ["figures/losses.svg", "figures/captions.json"]
    files: dict[str, Any] = {name: (directory / name).read_bytes() for name in names}
    return files | {f"final checkpoint of {stage}": checkpoint(directory, stage, STEPS) for stage in STAGES}


def assert_same_outcome(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    file = tmp_path_factory.mktemp("site") / "toy.py"
    file.write_text(EXPERIMENT)
    return Site(file, file.parent / "programs")


@pytest.fixture(scope="module")
def whole(site, tmp_path_factory) -> dict[str, Any]:
    """What the run leaves that nobody touched."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert "going on" not in site.finish(directory)
    return outcome(directory)


def test_the_comparison_sees_what_it_must(whole):
    """Parameters, optimiser, step, keys, random counters and data position are compared, and are no constants."""
    for stage in STAGES:
        final = whole[f"final checkpoint of {stage}"]
        names = " ".join(final)
        assert final["step"] == ("int32", (), np.int32(STEPS).tobytes())
        assert all(part in names for part in ("parameters", "optimiser", "mu", "nu", "count", "key"))
        assert len({value for value in final.values() if isinstance(value, tuple)}) > 8
        assert whole[f"metrics/{stage}.jsonl"].count(b"\n") >= STEPS // 5
    network = whole["final checkpoint of network"]
    assert any("dropout" in name for name in network)
    assert network["sidecar"]["data_position"]
    assert whole["final checkpoint of attention"]["sidecar"]["data_position"] is None
    assert whole["results.json"] != b"{}"


@dataclass(frozen=True)
class Kill:
    """Where a process was when it was killed."""

    seconds: float
    progress: dict[str, int]

    @property
    def place(self) -> str:
        if not any(self.progress.values()):
            return "before the first recorded step"
        stage = STAGES[1] if self.progress[STAGES[1]] else STAGES[0]
        return f"{stage}, step {self.progress[stage]} of {STEPS}"


def kill_when(site: Site, directory: Path, due: Callable[[float], bool]) -> Kill | None:
    """Start or resume, and kill with SIGKILL once due; None if the run was over before."""
    with site.start(directory) as process:
        began = time.monotonic()
        while process.poll() is None and not due(time.monotonic() - began):
            time.sleep(0.002)
        seconds = time.monotonic() - began
        process.kill()
        said, _ = process.communicate()
    if process.returncode == 0:
        return None
    assert process.returncode == -signal.SIGKILL, said  # and not a failure of its own
    return Kill(seconds, {stage: (recorded_steps(directory, stage) or [0])[-1] for stage in STAGES})


def test_a_run_killed_three_times_ends_as_one_never_killed(site, whole, tmp_path):
    """A kill in the first stage, one soon after resuming, one in the second stage."""
    chance = random.Random(20)
    directory = tmp_path / "run"

    def once_recorded(stage: str, lines: int) -> Callable[[float], bool]:
        """Due a random instant after the stage has recorded so many more lines than it has now."""
        record = directory / "metrics" / f"{stage}.jsonl"
        before = record.read_bytes().count(b"\n") if record.exists() else 0
        instant = chance.uniform(0, 0.1)
        seen_at: list[float] = []

        def due(seconds: float) -> bool:
            if not seen_at and record.exists() and record.read_bytes().count(b"\n") >= before + lines:
                seen_at.append(seconds)
            return bool(seen_at) and seconds >= seen_at[0] + instant

        return due

    kills = []
    for stage, lines in ((STAGES[0], 12), (STAGES[0], 5), (STAGES[1], 14)):
        kill = kill_when(site, directory, once_recorded(stage, lines))
        assert kill is not None, "the run was over before it was killed"
        assert 0 < kill.progress[stage] < STEPS
        assert json.loads((directory / "status.json").read_text())["status"] == "running"
        kills.append(kill)
    said = site.finish(directory)
    assert "network: going on from the checkpoint of step" in said
    assert_same_outcome(outcome(directory), whole)


@pytest.mark.slow
def test_runs_killed_at_twenty_random_moments_end_as_one_never_killed(site, whole, tmp_path):
    """Every other kill comes at a moment of the whole length of an unkilled run, start-up included, the rest at one of
    its training, counted from when the process first records something. A run that ends is compared, and the next
    begins, until twenty kills have struck. Every process compiles its programs itself."""
    site = Site(site.file, None)

    def training_began(directory: Path) -> Callable[[], bool]:
        """Whether a record has been touched since now."""

        def touched() -> list[int]:
            return [path.stat().st_mtime_ns for path in sorted(directory.glob("metrics/*.jsonl"))]

        before = touched()
        return lambda: touched() != before

    directory = tmp_path / "unkilled"
    began = training = time.monotonic()
    with site.start(directory) as process:
        wait_for(process, training_began(directory))
        training = time.monotonic()
        said, _ = process.communicate()
    ended = time.monotonic()
    assert process.returncode == 0, said
    assert_same_outcome(outcome(directory), whole)

    chance = random.Random(0)
    kills: list[Kill] = []
    runs = 0
    while len(kills) < 20:
        directory = tmp_path / f"run-{runs}"
        alive = True
        while alive and len(kills) < 20:
            if len(kills) % 2:
                moment, counting = chance.uniform(0, ended - began), lambda: True
            else:
                moment, counting = chance.uniform(0, ended - training), training_began(directory)
            counted_from: list[float] = []

            def due(seconds: float, moment=moment, counting=counting, counted_from=counted_from) -> bool:
                if not counted_from and counting():
                    counted_from.append(seconds)
                return bool(counted_from) and seconds - counted_from[0] >= moment

            kill = kill_when(site, directory, due)
            alive = kill is not None
            if kill is not None:
                kills.append(kill)
                print(f"kill {len(kills)}, of run {runs}, after {kill.seconds:.2f} s: {kill.place}")
        site.finish(directory)
        assert_same_outcome(outcome(directory), whole)
        runs += 1
    print(f"20 kills, {runs} runs ended, each byte for byte as the one never killed ({ended - began:.1f} s)")
    assert len({kill.place for kill in kills}) > 5, "the kills must strike at different places"


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def test_a_run_stopped_by_sigterm_and_by_ctrl_c_ends_as_one_never_stopped(site, whole, tmp_path):
    directory = tmp_path / "run"
    for stage, number in ((STAGES[0], signal.SIGTERM), (STAGES[1], signal.SIGINT)):
        with site.start(directory) as process:
            wait_for(process, lambda stage=stage: len(recorded_steps(directory, stage)) >= 7)
            if number == signal.SIGTERM:
                # Held still, so that it lives on while another process asks for its directory.
                process.send_signal(signal.SIGSTOP)
                with site.start(directory) as second:
                    said, _ = second.communicate()
                assert second.returncode == 3
                assert f"{directory} is in use by process {process.pid}" in said
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            said, _ = process.communicate()
        assert process.returncode == 128 + number, said
        assert f"stopped on request; go on with: jattn resume {directory}" in said
        assert status_of(directory) == "stopped"
        last = recorded_steps(directory, stage)[-1]
        assert 0 < last < STEPS
        assert kept_steps(directory, stage)[-1] == last, "the moment of stopping is checkpointed"
    said = site.finish(directory)
    assert f"network: going on from the checkpoint of step {last}" in said
    assert_same_outcome(outcome(directory), whole)


def test_a_run_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(site, whole, small_disk):
    disk, fill = small_disk
    directory = disk / "run"
    with site.start(directory) as process:
        wait_for(process, lambda: len(recorded_steps(directory, STAGES[0])) >= 7)
        process.send_signal(signal.SIGSTOP)
        ballast = fill(disk)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate()
    assert process.returncode == 3, said
    assert "ERROR:absl" not in said, "what Orbax raises is told once"
    assert "No space left on device" in said.splitlines()[-1]
    assert str(directory) in said.splitlines()[-1]
    intact = kept_steps(directory, STAGES[0])
    assert intact
    ballast.unlink()
    said = site.finish(directory)
    assert f"attention: going on from the checkpoint of step {intact[-1]}" in said
    assert_same_outcome(outcome(directory), whole)
