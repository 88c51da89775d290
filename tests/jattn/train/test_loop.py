"""The training loop against loops written by hand."""

from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import CheckpointManager
from toys import (
    CLOSE,
    FEATURES,
    KEY,
    OPTIMISER,
    Plain,
    Stateful,
    assert_close,
    bare_loop,
    batched_rows,
    evaluate,
    map_stream,
    sample,
    squared_error,
    toy_run,
    words,
)

from jattn.train import Fitted, Generated, Schedule, create_state, fit, mapped


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


def test_a_stage_begins_where_another_ended(tmp_path):
    given = {
        "build": Plain, "loss": squared_error, "optimiser": OPTIMISER, "data": Generated(sample), "key": KEY,
        "evaluate": evaluate, "seeds": 2, "schedule": Schedule(5, 5, 5, 5),
    }  # fmt: skip
    with toy_run(tmp_path / "run") as run:
        first = fit(run, "first", **given)
        kept = jax.tree.leaves(jax.device_get(first.state.parameters))
        fit(run, "second", **given, parameters=first.state.parameters)
        ended, began = (run.history(stage)["eval/error"][1] for stage in ("first", "second"))
        np.testing.assert_allclose(began[0], ended[-1], **CLOSE)
        assert (began[-1] < began[0]).all()
        # The earlier stage's arrays are still there, and what they were.
        for ours, theirs in zip(jax.tree.leaves(first.state.parameters), kept, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        with pytest.raises(ValueError, match="parameters must be those of the model that is built; they differ in"):
            fit(run, "third", **given | {"build": Stateful}, parameters=first.state.parameters)


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


class _Unhashable(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (2,)))
        self.labels = {"a list has no hash": []}


@pytest.mark.parametrize(("build", "programs"), [(Plain, 1), (_Unhashable, 2)])
def test_what_is_measured_of_models_alike_is_one_program(build, programs):
    """Where a structure has no hash each model has a program, which is not made anew at every call either."""
    traced = []

    def measure(model: nnx.Module, factor: jax.Array) -> jax.Array:
        traced.append(1)
        return factor * sum(leaf.sum() for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

    models = [Fitted(*create_state(build, OPTIMISER, jax.random.key(seed), 2), 2) for seed in range(2)]
    measured = mapped(measure)
    for factor in (1.0, 3.0):
        for fitted in models:
            want = sum(leaf.sum(axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(fitted.state.parameters))
            np.testing.assert_allclose(measured(fitted, shared=(jnp.float32(factor),)), factor * want, rtol=1e-5)
    assert len(traced) == programs
