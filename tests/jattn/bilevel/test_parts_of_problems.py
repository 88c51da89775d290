"""For every method: batches, projections of inner variables, checkpoints, and runs side by side."""

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratic_suite import DECAY, INNER, OUTER, QUADRATIC, UNCONSTRAINED, in_blocks

from jattn.bilevel import Blocks, Method, Problem, advance, solve
from jattn.runs.checkpoints import Checkpoints

STEPS = 40


def outer_after(method: Method, problem: Problem, key: jax.Array, steps: int = STEPS) -> jax.Array:
    found = solve(problem, method, jnp.zeros(OUTER), jnp.zeros(INNER), steps=steps, key=key, record_every=steps)
    return found.state.outer


def pulled(noise: float) -> Problem:
    """The quadratic problem, in four blocks that pull elsewhere; with noise 0 they are alike."""
    blocks = in_blocks(QUADRATIC.problem())
    weaker = Blocks(noise * blocks.outer_batch.arrays)
    return replace(blocks, outer_batch=weaker, inner_batch=weaker)


@pytest.mark.parametrize("name", UNCONSTRAINED)
def test_batches_are_drawn_and_their_noise_goes_through_linearly(name: str) -> None:
    """Blocks that are alike are the whole problem; others move the path by what they differ, each key otherwise.

    SABA, which needs blocks and remembers them, has blocks that are alike for the whole problem.
    """
    method = UNCONSTRAINED[name][0]
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        whole = pulled(0.0) if name == "saba" else QUADRATIC.problem()
        exact = np.array([outer_after(method, whole, key) for key in keys])
        run = jax.jit(lambda noise, key: outer_after(method, pulled(noise), key))
        np.testing.assert_allclose(run(0.0, keys[1]), exact[1], atol=1e-12)
        small, large = (np.array([run(noise, key) for key in keys]) - exact for noise in (1e-4, 1e-3))
    size = np.abs(small).max()
    assert size > 1e-8
    assert size < 1e-2  # a hundred times the noise
    np.testing.assert_allclose(large, 10 * small, atol=2 * size)
    assert np.abs(small[0] - small[1]).max() > 1e-3 * size


@pytest.mark.parametrize("name", UNCONSTRAINED)
def test_outer_variables_stay_where_they_are_projected(name: str) -> None:
    """In a box that the answer is not in, the best of the box: checked on a fine grid of the hyper-objective."""
    method, steps, tolerance = UNCONSTRAINED[name]
    answer = QUADRATIC.answer("")
    low, high = np.minimum(answer, 0) + 0.2, np.maximum(answer, 0) - 0.2
    low, high = np.minimum(low, high), np.maximum(low, high)
    with jax.enable_x64(True):
        whole = in_blocks(QUADRATIC.problem()) if name == "saba" else QUADRATIC.problem()
        problem = replace(whole, project_outer=lambda x: jnp.clip(x, low, high))
        found = jax.jit(lambda key: outer_after(method, problem, key, steps))(jax.random.key(0))
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 101).T, indexing="ij"), -1).reshape(-1, OUTER)
    inner = np.linalg.solve(QUADRATIC.hessian, QUADRATIC.cross @ grid.T + QUADRATIC.shift[:, None]).T
    value = 0.5 * np.sum((inner - QUADRATIC.target) ** 2, -1) + DECAY / 2 * np.sum(grid**2, -1)
    np.testing.assert_allclose(found, grid[value.argmin()], atol=(high - low).max() / 50 + 2 * tolerance)


BOXED = {name: settings for name, settings in UNCONSTRAINED.items() if "project_inner" in settings[0].accepts}


def test_the_methods_that_project_inner_variables() -> None:
    """All but BOME, BVFSM and those that solve for an adjoint, whose systems know nothing of a projection."""
    refusing = {"conjugate gradients", "neumann", "stocbio", "soba", "saba", "bome", "bvfsm"}
    assert set(UNCONSTRAINED) - set(BOXED) == refusing


@pytest.mark.parametrize("name", BOXED)
def test_inner_variables_stay_in_their_box(name: str) -> None:
    """y = clip(x + shift, 0, 1): within the box it follows x, and at its side no x near 0 moves it."""
    method, steps, tolerance = BOXED[name]
    shift, target = np.array([0.2, 3.0]), np.array([0.7, 0.8])
    with jax.enable_x64(True):
        problem = Problem(
            lambda x, y: 0.5 * jnp.sum((y - target) ** 2) + DECAY / 2 * x @ x,
            lambda x, y: 0.5 * jnp.sum((y - x - shift) ** 2),
            project_inner=partial(jnp.clip, min=0.0, max=1.0),
        )
        start = jnp.array([0.0, 0.3]), jnp.full(2, 0.5)
        end = jax.jit(lambda: solve(problem, method, *start, steps=steps, key=jax.random.key(0), record_every=steps))()
    np.testing.assert_allclose(end.state.outer, [0.5 / (1 + DECAY), 0], atol=2 * tolerance)
    np.testing.assert_allclose(end.state.inner, [0.2 + 0.5 / (1 + DECAY), 1], atol=2 * tolerance)


@pytest.mark.parametrize("name", UNCONSTRAINED)
def test_a_run_goes_on_from_a_checkpoint_and_keys_run_side_by_side(name: str, tmp_path: Path) -> None:
    method, problem = UNCONSTRAINED[name][0], pulled(0.1)
    keys = jax.random.split(jax.random.key(1), 2)
    begun, whole = (
        jax.jit(
            lambda key, n=n: (
                solve(problem, method, jnp.zeros(OUTER), jnp.zeros(INNER), steps=n, key=key, record_every=5).state
            )
        )
        for n in (5, 10)
    )
    with closing(Checkpoints(tmp_path / "bilevel")) as checkpoints:
        checkpoints.save(5, begun(keys[0]), {}, {})
        checkpoints.wait()
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, begun(keys[0])))
    assert restored is not None
    rest = jax.jit(lambda state: advance(problem, method, state, steps=5, record_every=5).state)(restored.state)
    alone = [whole(key).outer for key in keys]
    np.testing.assert_array_equal(rest.outer, alone[0])
    assert np.abs(alone[0] - alone[1]).max() > 1e-6
    together = jax.jit(jax.vmap(lambda key: outer_after(method, problem, key, 10)))(keys)
    np.testing.assert_allclose(together, alone, atol=1e-4)
