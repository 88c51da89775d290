"""What is timed is right: everyone's hypergradient is that of the closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.bench.hypergradient import OURS, gradients_of, outer_runs, truth
from jattn.bench.inner_problems import Case, lasso, ridge, support_vectors

CASE = ridge(20)


def test_everyone_computes_the_hypergradient() -> None:
    """Of ridge regression: by its normal equations, whose matrix is the inner objective's Hessian."""

    assert CASE.inner is not None
    objective = CASE.inner

    def closed(penalties: jax.Array) -> jax.Array:
        slope = jax.grad(objective)
        matrix = jax.jacfwd(slope)(CASE.start, penalties)
        return CASE.outer(CASE.start - jnp.linalg.solve(matrix, slope(CASE.start, penalties)), penalties)

    want, slope = jax.value_and_grad(closed)(CASE.penalties)
    for name, function in gradients_of(CASE, 1e-5).items():
        value, found = jax.jit(function)(CASE.penalties, CASE.start)
        np.testing.assert_allclose(value, want, rtol=1e-2, err_msg=name)
        np.testing.assert_allclose(found, slope, atol=0.03 * np.abs(slope).max(), err_msg=name)


@pytest.mark.parametrize("case", [support_vectors(20), lasso(20)], ids=lambda case: case.name)
def test_everyone_computes_what_has_corners(case: Case) -> None:
    """By central differences of the outer objective, in double precision, at the inner solution found anew."""
    with jax.enable_x64(True):
        start, penalties = (jnp.asarray(each, jnp.float64) for each in (case.start, case.penalties))
        solve = case.solver(1e-12)
        value = jax.jit(lambda penalties: case.outer(solve(start, penalties), penalties))
        moves = 1e-5 * np.eye(len(penalties))
        want = np.array([(value(penalties + move) - value(penalties - move)) / 2e-5 for move in moves])
    np.testing.assert_allclose(truth(case), want, atol=1e-6 * np.abs(want).max())
    found = gradients_of(case, 1e-5)
    assert set(found) == {*OURS, "jaxopt", "jaxopt, tuned"}
    for name, function in found.items():
        _, slope = jax.jit(function)(case.penalties, case.start)
        np.testing.assert_allclose(slope, want, atol=3e-3 * np.abs(want).max(), err_msg=name)


@pytest.mark.slow
def test_outer_runs_end_at_the_same_loss() -> None:
    losses = [float(jax.jit(run)(CASE.penalties, CASE.start)) for run in outer_runs(CASE).values()]
    assert len(losses) >= 4
    np.testing.assert_allclose(losses, losses[0], rtol=1e-2)
