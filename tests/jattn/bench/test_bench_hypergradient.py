"""What is timed is right: everyone's hypergradient is that of the closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.bench.hypergradient import gradients_of, outer_runs, ridge

CASE = ridge(20)


def test_everyone_computes_the_hypergradient() -> None:
    """Of ridge regression: by its normal equations, whose matrix is the inner objective's Hessian."""

    def closed(penalties: jax.Array) -> jax.Array:
        slope = jax.grad(CASE.inner)
        matrix = jax.jacfwd(slope)(CASE.start, penalties)
        return CASE.outer(CASE.start - jnp.linalg.solve(matrix, slope(CASE.start, penalties)), penalties)

    want, slope = jax.value_and_grad(closed)(CASE.penalties)
    for name, function in gradients_of(CASE, 1e-5).items():
        value, found = jax.jit(function)(CASE.penalties, CASE.start)
        np.testing.assert_allclose(value, want, rtol=1e-2, err_msg=name)
        np.testing.assert_allclose(found, slope, atol=0.03 * np.abs(slope).max(), err_msg=name)


@pytest.mark.slow
def test_outer_runs_end_at_the_same_loss() -> None:
    losses = [float(jax.jit(run)(CASE.penalties, CASE.start)) for run in outer_runs(CASE).values()]
    assert len(losses) >= 4
    np.testing.assert_allclose(losses, losses[0], rtol=1e-2)
