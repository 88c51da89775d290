"""GMRES against SciPy's: as many products, to the residual that is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import gmres

from jattn.implicit.krylov import generalised_minimal_residual

SIZE = 40
RANDOM = np.random.default_rng(0)
MATRIX = np.eye(SIZE) + 0.5 * RANDOM.normal(size=(SIZE, SIZE)) / SIZE**0.5
RIGHT = RANDOM.normal(size=SIZE)


@pytest.mark.parametrize("restart", [7, SIZE])
def test_as_many_products_as_scipy_takes(restart: int) -> None:
    """The first residual that is small enough ends it, within a cycle too."""
    left: list[float] = []
    gmres(MATRIX, RIGHT, rtol=1e-13, atol=0, restart=restart, maxiter=30, callback=left.append, callback_type="pr_norm")
    with jax.enable_x64(True):
        matrix, right = jnp.asarray(MATRIX), jnp.asarray(RIGHT)
        solve = jax.jit(
            lambda tolerance: generalised_minimal_residual(
                lambda v: matrix @ v, right, None, None, tolerance, 1000, restart
            )
        )
        for tolerance in (1e-1, 1e-3, 1e-6, 1e-10):
            x, report = solve(tolerance)
            assert report.iterations == 1 + next(step for step, each in enumerate(left) if each <= tolerance)
            residual = np.linalg.norm(RIGHT - MATRIX @ np.asarray(x)) / np.linalg.norm(RIGHT)
            np.testing.assert_allclose(report.residual, residual, rtol=1e-6)
            assert 1e-4 * tolerance < residual <= tolerance


def test_preconditioners_starts_and_singular_matrices() -> None:
    with jax.enable_x64(True):
        matrix, right = jnp.asarray(MATRIX), jnp.asarray(RIGHT)
        exact = np.linalg.solve(MATRIX, RIGHT)

        def solve(product, right, start=None, precondition=None, restart=20):
            return generalised_minimal_residual(product, right, start, precondition, 1e-10, 200, restart)

        # With M = A one product is enough, and none where it starts at the answer or has nothing to solve.
        x, report = solve(lambda v: matrix @ v, right, None, lambda v: jnp.linalg.solve(matrix, v))
        np.testing.assert_allclose(x, exact, atol=1e-9)
        assert report.iterations == 1
        assert solve(lambda v: matrix @ v, right, jnp.asarray(exact))[1].iterations == 0
        x, report = solve(lambda v: matrix @ v, jnp.zeros(SIZE))
        assert report.iterations == report.residual == 0
        assert (x == 0).all()
        # What no x reaches is left, and it ends.
        diagonal = jnp.arange(4.0)
        x, report = solve(lambda v: diagonal * v, jnp.ones(4), restart=4)
        np.testing.assert_allclose(report.residual, 0.5, rtol=1e-6)
        np.testing.assert_allclose(x[1:], 1 / diagonal[1:], rtol=1e-6)
        x, report = solve(lambda v: 0 * v, jnp.ones(4), restart=4)
        assert report.residual == 1
        assert report.iterations == 1


def test_many_at_once() -> None:
    matrices = jnp.asarray(np.stack([MATRIX, 2 * MATRIX, np.eye(SIZE)]), jnp.float32)
    x, report = jax.vmap(
        lambda matrix: generalised_minimal_residual(
            lambda v: matrix @ v, jnp.asarray(RIGHT, jnp.float32), None, None, 1e-5, 100, 10
        )
    )(matrices)
    for matrix, found in zip(np.asarray(matrices), np.asarray(x), strict=True):
        np.testing.assert_allclose(found, np.linalg.solve(matrix, RIGHT), atol=1e-4)
    assert report.iterations[2] == 1
