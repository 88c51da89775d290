"""Joint projections: against numpy's closed forms, scipy's SLSQP, and the conditions that characterise them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jattn.bilevel import onto_affine, onto_convex, onto_halfspace, onto_margins

OUTER, INNER = 3, 4


def drawn(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix, a right-hand side, and a point far outside."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(rows, OUTER + INNER))
    return matrix, generator.normal(size=rows), 3 * generator.normal(size=OUTER + INNER)


def affine(matrix: np.ndarray, right: np.ndarray, outer: jax.Array, inner: dict[str, jax.Array]) -> jax.Array:
    return matrix @ jnp.concatenate([outer, inner["a"], inner["b"]]) - right


def split(point: np.ndarray) -> tuple[jax.Array, dict[str, jax.Array]]:
    return jnp.asarray(point[:OUTER]), {
        "a": jnp.asarray(point[OUTER : OUTER + 1]),
        "b": jnp.asarray(point[OUTER + 1 :]),
    }


def joined(pair: tuple[jax.Array, dict[str, jax.Array]]) -> np.ndarray:
    return np.concatenate([pair[0], pair[1]["a"], pair[1]["b"]])


def by_slsqp(point: np.ndarray, inequality, equality=None) -> np.ndarray:
    constraints = [{"type": "ineq", "fun": lambda u: -np.asarray(inequality(*split(u)))}]
    if equality is not None:
        constraints.append({"type": "eq", "fun": lambda u: np.asarray(equality(*split(u)))})
    found = minimize(
        lambda u: (0.5 * np.sum((u - point) ** 2), u - point),
        point,
        jac=True,
        method="SLSQP",
        constraints=constraints,
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize("seed", range(3))
def test_affine_set_is_the_pseudoinverse(seed: int) -> None:
    with jax.enable_x64(True):
        matrix, right, point = drawn(seed, 2)
        equality = partial(affine, matrix, right)
        ours = joined(jax.jit(onto_affine(equality, *split(np.zeros(7))))(*split(point)))
        np.testing.assert_allclose(ours, point - np.linalg.pinv(matrix) @ (matrix @ point - right), atol=1e-12)


@pytest.mark.parametrize("right", [-50.0, 50.0])
def test_half_space(right: float) -> None:
    with jax.enable_x64(True):
        matrix, _, point = drawn(0, 1)
        normal = matrix[0]
        project = onto_halfspace(partial(affine, matrix, np.array([right])), *split(np.zeros(7)))
        wanted = point - normal * max(normal @ point - right, 0) / (normal @ normal)
        np.testing.assert_allclose(joined(project(*split(point))), wanted, atol=1e-12)


def test_half_space_refuses_two_rows() -> None:
    matrix, right, point = drawn(0, 2)
    with pytest.raises(ValueError, match="inequality must have one row"):
        onto_halfspace(partial(affine, matrix, right), *split(point))


def test_polyhedron_is_that_of_slsqp() -> None:
    @jax.jit
    def project(matrix: jax.Array, right: jax.Array, point: jax.Array) -> jax.Array:
        inequality, equality = partial(affine, matrix[:5], right[:5]), partial(affine, matrix[5:], right[5:])
        outer, inner = onto_convex(inequality, equality, tolerance=1e-11)(*split(point))
        return jnp.concatenate([outer, inner["a"], inner["b"]])

    with jax.enable_x64(True):
        problems = [drawn(seed, 6) for seed in range(4)]
        every = jax.vmap(project)(*(np.stack(each) for each in zip(*problems, strict=True)))
        for (matrix, right, point), together in zip(problems, every, strict=True):
            inequality, equality = partial(affine, matrix[:5], right[:5]), partial(affine, matrix[5:], right[5:])
            ours = project(matrix, right, point)
            np.testing.assert_allclose(ours, by_slsqp(point, inequality, equality), atol=1e-6)
            np.testing.assert_allclose(ours, together, atol=1e-10)
            assert (matrix[:5] @ ours - right[:5]).max() < 1e-10
            np.testing.assert_allclose(matrix[5:] @ ours, right[5:], atol=1e-10)


def test_curved_set_is_that_of_slsqp() -> None:
    """A squared group norm below an outer variable, an exponential and a plane: rows with curvature, active and not."""

    def inequality(outer: jax.Array, inner: dict[str, jax.Array]) -> jax.Array:
        group, exponential = jnp.sum(inner["b"] ** 2) - outer[0], jnp.sum(jnp.exp(inner["a"])) + outer[1] ** 2 - 2
        return jnp.stack([group, exponential, outer.sum() - 30])

    with jax.enable_x64(True):
        project = jax.jit(onto_convex(inequality, tolerance=1e-11))
        for seed in range(3):
            _, _, point = drawn(seed, 1)
            np.testing.assert_allclose(joined(project(*split(point))), by_slsqp(point, inequality), atol=1e-6)


def test_repeated_rows_and_points_inside() -> None:
    with jax.enable_x64(True):
        matrix, right, point = drawn(1, 1)
        repeated = jax.jit(onto_convex(partial(affine, np.repeat(matrix, 3, 0), np.repeat(right, 3)), tolerance=1e-9))
        once = onto_halfspace(partial(affine, matrix, right), *split(point))
        np.testing.assert_allclose(joined(once(*split(point))), joined(repeated(*split(point))), atol=1e-8)
        inside = joined(once(*split(point))) - matrix[0]
        np.testing.assert_array_equal(joined(repeated(*split(inside))), inside)


def test_no_constraint_is_refused() -> None:
    with pytest.raises(ValueError, match="inequality or equality must be given"):
        onto_convex()


def test_margins_are_the_general_projection() -> None:
    @jax.jit
    def general(matrix: jax.Array, weights: jax.Array, slack: jax.Array) -> tuple[jax.Array, jax.Array]:
        return onto_convex(lambda weights, slack: 1 - slack - matrix @ weights, tolerance=1e-12)(weights, slack)

    with jax.enable_x64(True):
        for seed in range(3):
            generator = np.random.default_rng(seed)
            matrix, weights, slack = (jnp.asarray(generator.normal(size=size)) for size in ((20, 4), 4, 20))
            ours = jax.jit(onto_margins)(matrix, weights, slack)
            np.testing.assert_allclose(np.concatenate(ours), np.concatenate(general(matrix, weights, slack)), atol=1e-9)
            # The conditions for a projection: slack moves only where its row is active, by the row's multiplier.
            multipliers = np.asarray(ours[1] - slack)
            assert multipliers.min() >= 0
            np.testing.assert_allclose(ours[0] - weights, matrix.T @ multipliers, atol=1e-9)
            np.testing.assert_allclose(multipliers * (1 - ours[1] - matrix @ ours[0]), 0, atol=1e-9)


def test_affine_set_of_rows_that_are_nearly_dependent() -> None:
    """Their normal equations would lose all digits of single precision."""
    matrix = np.array([[1.0, 0, 0, 0, 0, 0, 0], [1, 1e-4, 0, 0, 0, 0, 0]], np.float32)
    right, point = np.array([1.0, 1.0], np.float32), np.array([3.0, 5, 1, 2, 3, 4, 5], np.float32)
    equality = partial(affine, matrix, right)
    ours = joined(jax.jit(onto_affine(equality, *split(np.zeros(7, np.float32))))(*split(point)))
    np.testing.assert_allclose(ours, [1, 0, *point[2:]], atol=2e-3)
