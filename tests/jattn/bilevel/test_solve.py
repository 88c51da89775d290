"""The loop: batches, seeds and step sizes side by side, going on from Orbax's checkpoints, and refusals."""

from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_answers import convex_toy, toy_method, toy_start

from jattn.bilevel import LVHBA, Blocks, Problem, Proximity, advance, at_inner_solution, growing_penalty, solve
from jattn.runs.checkpoints import Checkpoints

BLOCKS, SAMPLES, FEATURES = 4, 8, 3


def ridge() -> Problem:
    """A logarithmic weight decay is learned on other data than the weights; both come in blocks."""
    generator = np.random.default_rng(0)
    features = jnp.asarray(generator.normal(size=(2, BLOCKS, SAMPLES, FEATURES)), jnp.float32)
    targets = features.sum(-1) + jnp.asarray(generator.normal(size=features.shape[:-1]), jnp.float32)

    def error(weights: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.mean((batch[0] @ weights["w"] + weights["b"] - batch[1]) ** 2)

    return Problem(
        outer=lambda decay, weights, batch: error(weights, batch),
        inner=lambda decay, weights, batch: error(weights, batch) + jnp.exp(decay) * jnp.sum(weights["w"] ** 2),
        outer_batch=Blocks((features[0], targets[0])),
        inner_batch=Blocks((features[1], targets[1])),
    )


def ridge_start() -> tuple[jax.Array, dict[str, jax.Array]]:
    return jnp.zeros(()), {"w": jnp.zeros(FEATURES), "b": jnp.zeros(())}


METHOD = LVHBA(0.02, 0.1, 0.05, growing_penalty(1.0, 0.3), Proximity(1.0))


def leaves(tree) -> list[np.ndarray]:
    return [
        np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def assert_same_bits(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("constrained", [False, True])
def test_going_on_from_a_checkpoint_changes_no_bit(constrained: bool, tmp_path: Path) -> None:
    problem, method, start = (
        (convex_toy(20), toy_method(), toy_start(20)) if constrained else (ridge(), METHOD, ridge_start())
    )
    key = jax.random.key(3)
    whole, begun = (
        jax.jit(lambda n=n: solve(problem, method, *start, steps=n, key=key, record_every=5))() for n in (30, 10)
    )
    with closing(Checkpoints(tmp_path / "bilevel")) as checkpoints:
        checkpoints.save(10, begun.state, {}, {})
        checkpoints.wait()
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, begun.state))
    assert restored is not None
    assert_same_bits(restored.state, begun.state)
    rest = jax.jit(lambda state: advance(problem, method, state, steps=20, record_every=5))(restored.state)
    assert_same_bits(rest.state, whole.state)
    assert_same_bits(rest.records, jax.tree.map(lambda array: array[2:], whole.records))


def test_a_key_decides_and_seeds_and_step_sizes_run_side_by_side() -> None:
    def run(key: jax.Array, step: jax.Array) -> jax.Array:
        method = LVHBA(step, 0.1, 0.1, growing_penalty(1.0, 0.3), Proximity(1.0))
        return solve(ridge(), method, *ridge_start(), steps=20, key=key, record_every=20).state.outer

    keys, steps = jax.random.split(jax.random.key(0), 2), jnp.array([0.01, 0.03])
    alone = jax.jit(run)
    together = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(keys, steps)
    separate = np.array([[alone(key, step) for step in steps] for key in keys])
    assert np.unique(separate).size == 4
    np.testing.assert_allclose(together, separate, rtol=1e-5)
    assert alone(keys[0], steps[0]) == alone(keys[0], steps[0])


def test_records_measure_all_blocks() -> None:
    problem, (decay, weights) = ridge(), ridge_start()
    records = jax.jit(lambda: solve(problem, METHOD, decay, weights, steps=4, key=jax.random.key(0)).records)()
    assert records.step.tolist() == [1, 2, 3, 4]
    for n in range(4):
        weights = jax.tree.map(lambda array, n=n: array[n], records.inner)
        blocks = [problem.outer(decay, weights, problem.outer_batch[block]) for block in range(BLOCKS)]
        np.testing.assert_allclose(records.outer_objective[n], np.mean(blocks), rtol=1e-5)
    assert records.violation.tolist() == [0, 0, 0, 0]


def test_the_hyper_objective_is_that_of_the_exact_inner_solution() -> None:
    problem = Problem(lambda x, y: jnp.sum((y - 1) ** 2), lambda x, y: jnp.sum((y - x) ** 2))
    found = at_inner_solution(problem, lambda x: x, jnp.full(2, 3.0), jnp.ones(2))
    assert (found.hyper_objective, found.outer_objective, found.inner_gap) == (8, 0, 8)


def test_rows_that_do_not_move_are_not_scaled() -> None:
    problem = Problem(lambda x, y: x @ y, lambda x, y: y @ y, inequality=lambda x, y: jnp.stack([y @ y, x.sum()]))
    norms = problem.row_norms(jnp.ones(4), jnp.zeros(4))
    np.testing.assert_allclose(norms["inequality"], [1, 2])


def test_blocks_of_different_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"arrays must have one first axis.*\(3,\), \(4,\)"):
        Blocks((jnp.zeros(3), jnp.zeros(4)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 5, "record_every": 2}, "steps must be a positive multiple of record_every = 2; got 5"),
        ({"record_every": 0}, "record_every must be at least 1; got 0"),
        ({"key": None}, "key must be given"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(ridge(), METHOD, *ridge_start(), **({"steps": 4, "key": jax.random.key(0)} | changed))


def test_shapes_are_checked_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"problem\.outer must give a scalar; got shape \(2,\)"):
        solve(Problem(lambda x, y: x * y, lambda x, y: y @ y), METHOD, jnp.ones(2), jnp.ones(2), steps=1)
    problem = Problem(lambda x, y: x @ y, lambda x, y: y @ y, inequality=lambda x, y: x @ y)
    with pytest.raises(ValueError, match=r"problem\.inequality must give one axis of rows; got shape \(\)"):
        solve(problem, METHOD, jnp.ones(2), jnp.ones(2), steps=1)


def test_settings_must_be_positive() -> None:
    with pytest.raises(ValueError, match="outer_step must be positive; got -1"):
        LVHBA(outer_step=-1.0)
