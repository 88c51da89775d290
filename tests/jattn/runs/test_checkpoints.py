"""Checkpoints: what is saved comes back bit for bit, and damage of any kind costs at most the newest one."""

import logging
import os
import shutil
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import CheckpointManager

from jattn.runs.checkpoints import Best, CheckpointError, Checkpoints

# A save that fails leaves Orbax's other writes behind; their callbacks find its event loop closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEPT, SPOILED = 1, 2


def small_state(step: int) -> dict[str, jax.Array]:
    """A state that differs in every leaf from one step to the next."""
    return {"weights": jnp.arange(6.0).reshape(2, 3) + step, "key": jax.random.key(step)}


def large_state(step: int) -> dict[str, jax.Array]:
    """About 360 kB that do not compress."""
    return {"weights": jax.random.normal(jax.random.key(step), (300, 300))}


def as_numpy(tree) -> list[np.ndarray]:
    """Leaves as numpy; a typed key as its words."""
    return [
        np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def same_bits(one, other) -> bool:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [leaf.dtype for leaf in jax.tree.leaves(one)] == [leaf.dtype for leaf in jax.tree.leaves(other)]
    pairs = zip(as_numpy(one), as_numpy(other), strict=True)
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def save_all(directory: Path, steps, make=small_state, **options) -> None:
    with closing(Checkpoints(directory, **options)) as checkpoints:
        for step in steps:
            checkpoints.save(step, make(step), {"step": step}, {})


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    """A stage with checkpoints of steps KEPT and SPOILED, to be copied and then damaged."""
    directory = tmp_path_factory.mktemp("two") / "stage"
    save_all(directory, (KEPT, SPOILED))
    return directory.parent


@pytest.fixture
def copy_of_two(two_checkpoints, tmp_path) -> Path:
    shutil.copytree(two_checkpoints, tmp_path / "copy")
    return tmp_path / "copy" / "stage"


def test_a_state_comes_back_bit_for_bit(tmp_path):
    subnormal, negative_zero = np.float32(1e-45), np.float32(-0.0)
    state = {
        "float32": jnp.asarray(np.array([0.1, np.inf, -np.inf, np.nan, subnormal, negative_zero], np.float32)),
        "bfloat16": jnp.array([1.5, -0.0, 3e38], jnp.bfloat16),
        "float16": jnp.array([[65504.0, 6e-8]], jnp.float16),
        "int8": jnp.array([-128, 127], jnp.int8),
        "uint32": jnp.uint32(2**32 - 1),
        "bool": jnp.array([True, False]),
        "complex": jnp.array([1 - 2j], jnp.complex64),
        "nested": ({"step": jnp.int32(7)}, [jnp.zeros((1, 2, 3))], None),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1), 4),
        "rbg": jax.random.key(5, impl="rbg"),
    }
    sidecar = {"position": {"next_index": 3}, "nothing": None, "list": [1, 2.5, "x"], "nan": float("inf")}
    with closing(Checkpoints(tmp_path / "stage")) as checkpoints:
        checkpoints.save(12, state, sidecar, {})
    with closing(Checkpoints(tmp_path / "stage")) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    assert restored is not None
    assert restored.step == 12
    assert restored.sidecar == sidecar
    assert same_bits(restored.state, state)
    assert jax.random.key_impl(restored.state["rbg"]) == jax.random.key_impl(state["rbg"])
    # The keys are alive: they draw what the saved ones draw.
    draw = jax.vmap(jax.random.uniform)
    np.testing.assert_array_equal(draw(restored.state["keys"]), draw(state["keys"]))


def test_a_save_keeps_the_moment_it_was_asked_for(tmp_path):
    """The next step overwrites the saved buffers in place while the save is under way."""

    def advance(x: jax.Array) -> jax.Array:
        return x * 1.5 + 1

    expected, values = [], large_state(0)["weights"]
    step_in_place = jax.jit(advance, donate_argnums=0)
    with closing(Checkpoints(tmp_path / "stage", keep=4)) as checkpoints:
        for step in range(4):
            expected.append(np.array(values))
            checkpoints.save(step, {"weights": values}, {}, {})
            for _ in range(3):
                values = step_in_place(values)
    with closing(CheckpointManager(tmp_path / "stage")) as orbax:
        for step in range(4):
            saved = orbax.restore(step)["state"]["weights"]
            assert np.asarray(saved).tobytes() == expected[step].tobytes(), step


def kept_by_the_rules(values: list[float], keep: int, mode: str | None) -> set[int]:
    """Steps that stay when step i was measured values[i], decided one save at a time."""
    alive: list[int] = []
    for step in range(len(values)):
        alive.append(step)
        stay = set(alive[-keep:])
        if mode is not None:
            measured = [s for s in alive if values[s] == values[s]]
            wanted = {"min": min, "max": max}[mode]((values[s] for s in measured), default=None)
            stay |= set([s for s in measured if values[s] == wanted][:1])
        alive = [s for s in alive if s in stay]
    return set(alive)


@settings(max_examples=6, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, float("nan"), float("-inf")]), min_size=1, max_size=5),
    keep=st.integers(1, 3),
    mode=st.sampled_from(["min", "max", None]),
    reopen_after=st.integers(0, 4),
)
def test_the_newest_few_and_the_best_stay(tmp_path_factory, values, keep, mode, reopen_after):
    directory = tmp_path_factory.mktemp("retention") / "stage"
    best = None if mode is None else Best("loss", mode)
    checkpoints = Checkpoints(directory, keep=keep, best=best)
    for step, value in enumerate(values):
        checkpoints.save(step, {"x": jnp.float32(step)}, {}, {"loss": value, "other": -value})
        if step == reopen_after:  # the measurements must outlive the process
            checkpoints.close()
            checkpoints = Checkpoints(directory, keep=keep, best=best)
    checkpoints.wait()
    expected = kept_by_the_rules(values, keep, mode)
    assert set(checkpoints.steps()) == expected
    measured = [step for step in sorted(expected) if values[step] == values[step]]
    if mode is None or not measured:
        assert checkpoints.best_step() is None
    else:
        assert checkpoints.best_step() == {"min": min, "max": max}[mode](measured, key=values.__getitem__)
    checkpoints.close()
    assert {path.name for path in directory.with_name("stage.seals").iterdir()} == set(map(str, expected))


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 3)])
def test_the_best_is_told_from_the_latest(tmp_path, mode, best):
    with closing(Checkpoints(tmp_path / "stage", keep=1, best=Best("loss", mode))) as checkpoints:
        for step, loss in ((1, 0.1), (2, 0.7), (3, 0.9), (4, 0.5)):
            checkpoints.save(step, small_state(step), {}, {"loss": loss})
        checkpoints.save(5, small_state(5), {}, {})  # not evaluated: cannot be the best
        checkpoints.wait()
        assert checkpoints.best_step() == best
        assert checkpoints.steps() == [best, 5]


def test_a_best_metric_that_is_not_measured_is_an_error(tmp_path):
    with (
        closing(Checkpoints(tmp_path / "stage", best=Best("accuracy"))) as checkpoints,
        pytest.raises(ValueError, match=r"best\.metric must be one of \['loss'\]; got 'accuracy'"),
    ):
        checkpoints.save(1, small_state(1), {}, {"loss": 1.0})


def test_keep_below_one_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1; got 0"):
        Checkpoints(tmp_path / "stage", keep=0)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("which", ["largest", "metadata", "seal"])
def test_a_spoiled_newest_checkpoint_gives_way_to_the_one_before(copy_of_two, caplog, damage, which):
    newest = copy_of_two / str(SPOILED)
    target = {
        "largest": max(files_below(newest), key=lambda path: path.stat().st_size),
        "metadata": newest / "_CHECKPOINT_METADATA",
        "seal": copy_of_two.with_name("stage.seals") / str(SPOILED),
    }[which]
    damage(target)
    with caplog.at_level(logging.WARNING, "jattn"), closing(Checkpoints(copy_of_two)) as checkpoints:
        restored = checkpoints.restore(small_state(0))
        assert restored is not None
        if which == "seal" and damage is Path.unlink:  # as if killed between commit and seal: whole, and taken
            assert (restored.step, caplog.records) == (SPOILED, [])
            return
        assert restored.step == KEPT
        assert restored.sidecar == {"step": KEPT}
        assert same_bits(restored.state, small_state(KEPT))
        assert f"{newest} does not match its digest; the one before it is used" in caplog.text
        # The run goes on over the spoiled step.
        checkpoints.save(SPOILED, small_state(SPOILED), {"step": SPOILED}, {})
        checkpoints.wait()
        again = checkpoints.restore(small_state(0))
        assert again is not None
        assert again.step == SPOILED
        assert same_bits(again.state, small_state(SPOILED))


def test_damage_to_any_file_of_the_newest_checkpoint_is_noticed(two_checkpoints, tmp_path, caplog):
    names = [path.relative_to(two_checkpoints) for path in files_below(two_checkpoints / "stage" / str(SPOILED))]
    assert len(names) > 5
    for number, name in enumerate(names):
        copy = tmp_path / str(number)
        shutil.copytree(two_checkpoints, copy)
        flip_a_bit(copy / name)
        with closing(Checkpoints(copy / "stage")) as checkpoints:
            restored = checkpoints.restore(small_state(0))
        assert restored is not None, name
        assert restored.step == KEPT, name
        assert same_bits(restored.state, small_state(KEPT)), name
    assert len(caplog.records) == len(names)


def test_an_unsealed_checkpoint_that_cannot_be_read_gives_way(copy_of_two, caplog):
    """Killed between commit and seal, and then the machine lost what it had not written to the disk."""
    (copy_of_two.with_name("stage.seals") / str(SPOILED)).unlink()
    for path in files_below(copy_of_two / str(SPOILED) / "state"):
        os.truncate(path, 0)
    with closing(Checkpoints(copy_of_two)) as checkpoints:
        restored = checkpoints.restore(small_state(0))
    assert restored is not None
    assert restored.step == KEPT
    assert "cannot be read" in caplog.text


def test_an_unsealed_checkpoint_is_sealed_once_it_has_been_read(tmp_path, caplog):
    save_all(tmp_path / "stage", (1, 2))
    seal = tmp_path / "stage.seals" / "2"
    sealed = seal.read_text()
    seal.unlink()
    with closing(Checkpoints(tmp_path / "stage")) as checkpoints:
        checkpoints.restore(small_state(0))
    assert seal.read_text() == sealed
    assert not caplog.records


def test_the_measurement_of_an_unsealed_checkpoint_is_not_lost(tmp_path):
    options = {"keep": 1, "best": Best("loss")}
    with closing(Checkpoints(tmp_path / "stage", **options)) as checkpoints:
        checkpoints.save(1, small_state(1), {}, {"loss": 0.25})
    (tmp_path / "stage.seals" / "1").unlink()
    with closing(Checkpoints(tmp_path / "stage", **options)) as checkpoints:
        checkpoints.restore(small_state(0))
        checkpoints.save(2, small_state(2), {}, {"loss": 0.5})
        checkpoints.wait()
        assert (checkpoints.best_step(), checkpoints.steps()) == (1, [1, 2])


def test_when_all_are_spoiled_there_is_nothing_and_a_fresh_start_works(copy_of_two, caplog):
    for step in (KEPT, SPOILED):
        truncate(max(files_below(copy_of_two / str(step)), key=lambda path: path.stat().st_size))
    with closing(Checkpoints(copy_of_two)) as checkpoints:
        assert checkpoints.restore(small_state(0)) is None
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        assert checkpoints.steps() == []
        checkpoints.save(1, small_state(9), {}, {})
        checkpoints.wait()
        restored = checkpoints.restore(small_state(0))
    assert restored is not None
    assert same_bits(restored.state, small_state(9))


def test_nothing_saved_restores_nothing(tmp_path, caplog):
    with closing(Checkpoints(tmp_path / "stage")) as checkpoints:
        assert checkpoints.restore(small_state(0)) is None
    assert not caplog.records


def test_what_a_killed_process_left_half_written_is_no_checkpoint(copy_of_two):
    # Orbax's name for a checkpoint that is not committed; what is inside is a committed one's.
    for step in (3, 7):
        shutil.copytree(copy_of_two / str(SPOILED), copy_of_two / f"{step}.orbax-checkpoint-tmp")
    with closing(Checkpoints(copy_of_two)) as checkpoints:
        assert {path.name for path in copy_of_two.iterdir() if "tmp" in path.name} == set()
        restored = checkpoints.restore(small_state(0))
        assert restored is not None
        assert restored.step == SPOILED
        checkpoints.save(3, small_state(3), {}, {})
        checkpoints.wait()
        restored = checkpoints.restore(small_state(0))
    assert restored is not None
    assert (restored.step, same_bits(restored.state, small_state(3))) == (3, True)


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ({"weights": jnp.zeros((2, 4))}, r"weights: checkpoint float32\[2, 3\], code float32\[2, 4\]"),
        ({"weights": jnp.zeros((2, 2))}, r"weights: checkpoint float32\[2, 3\], code float32\[2, 2\]"),
        ({"weights": jnp.zeros((2, 3), jnp.bfloat16)}, r"weights: checkpoint float32\[2, 3\], code bfloat16\[2, 3\]"),
        ({"key": jax.random.key(0, impl="rbg")}, r"key: checkpoint key<fry>\[\], code key<rbg>\[\]"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"key: checkpoint key<fry>\[\], code uint32\[2\]"),
        ({"bias": jnp.zeros(3)}, r"bias: checkpoint None, code float32\[3\]"),
        ({"weights": None}, r"weights: checkpoint float32\[2, 3\], code None"),
    ],
    ids=["wider", "narrower", "dtype", "generator", "untyped key", "extra leaf", "missing leaf"],
)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_lost(copy_of_two, caplog, template, line):
    said = f"{copy_of_two / str(SPOILED)} is whole but does not fit.*\n  {line}$"
    with closing(Checkpoints(copy_of_two)) as checkpoints:
        with pytest.raises(CheckpointError, match=said):
            checkpoints.restore(small_state(0) | template)
        assert not caplog.records
        restored = checkpoints.restore(small_state(0))
    assert restored is not None
    assert same_bits(restored.state, small_state(SPOILED))


def save_large(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, large_state(step), {"step": step}, {})
    checkpoints.wait()


@pytest.mark.parametrize("next_call", ["wait", "save", "close"])
def test_a_save_that_fails_says_so_and_leaves_the_others(tmp_path, file_size_limit, capfd, next_call):
    checkpoints = Checkpoints(tmp_path / "stage", keep=1)
    save_large(checkpoints, 1)

    def fail() -> None:
        checkpoints.save(2, large_state(2), {}, {})  # fails in the background
        checkpoints.save(3, large_state(3), {}, {}) if next_call == "save" else getattr(checkpoints, next_call)()

    said = r"could not save step 2 in .*stage: .*File too large.*; checkpoints 1 are intact"
    with file_size_limit(20_000), pytest.raises(CheckpointError, match=said):
        fail()
    checkpoints.close()  # says nothing twice
    assert "Traceback" not in capfd.readouterr().err, "what is raised is not logged too"
    with closing(Checkpoints(tmp_path / "stage", keep=1)) as reopened:
        restored = reopened.restore(large_state(0))
        assert restored is not None
        assert restored.sidecar == {"step": 1}
        assert same_bits(restored.state, large_state(1))
        save_large(reopened, 2)  # there is room again
        assert reopened.steps() == [2]


def test_the_first_save_failing_says_there_is_no_other(tmp_path, file_size_limit):
    with (
        closing(Checkpoints(tmp_path / "stage")) as checkpoints,
        file_size_limit(20_000),
        pytest.raises(CheckpointError, match=r"step 7.*; there is no earlier checkpoint"),
    ):
        save_large(checkpoints, 7)


def test_a_save_can_be_tried_again_by_the_same_process(tmp_path, file_size_limit):
    with closing(Checkpoints(tmp_path / "stage", keep=1)) as checkpoints:
        save_large(checkpoints, 1)
        with file_size_limit(20_000), pytest.raises(CheckpointError):
            save_large(checkpoints, 2)
        save_large(checkpoints, 2)
        restored = checkpoints.restore(large_state(0))
    assert restored is not None
    assert (restored.step, same_bits(restored.state, large_state(2))) == (2, True)


def test_a_disk_that_is_full_indeed(small_disk):
    disk, fill = small_disk
    checkpoints = Checkpoints(disk / "stage", keep=2)
    for step in (1, 2):
        save_large(checkpoints, step)
    ballast = fill(disk)
    said = r"step 3(.|\n)*No space left on device(.|\n)*checkpoints 1, 2 are intact"
    with pytest.raises(CheckpointError, match=said):
        save_large(checkpoints, 3)
    checkpoints.close()
    # Resuming needs no room either.
    with closing(Checkpoints(disk / "stage", keep=2)) as reopened:
        restored = reopened.restore(large_state(0))
        assert restored is not None
        assert restored.step == 2
        assert same_bits(restored.state, large_state(2))
        ballast.unlink()
        save_large(reopened, 3)
        assert reopened.steps() == [2, 3]
