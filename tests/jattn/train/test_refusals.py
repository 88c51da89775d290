"""What the training loop must refuse, or tell."""

import json
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toys import (
    BATCH,
    FEATURES,
    KEY,
    OPTIMISER,
    READ,
    ROWS,
    At,
    Config,
    Plain,
    Stateful,
    assert_close,
    bare_loop,
    batched_rows,
    evaluate,
    newest_checkpoint,
    sample,
    squared_error,
    toy_run,
    train_toy,
    with_label,
    words,
)

from jattn.runs import Best, CheckpointError, Run, RunError
from jattn.train import Generated, NonFiniteError, Schedule, create_state, fit


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
