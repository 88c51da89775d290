"""Proximal operators against SciPy's solver and central differences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import assert_derivatives
from scipy.optimize import minimize

from jattn.implicit import proximal

X = 2 * np.random.default_rng(1).normal(size=5)
POSITIVE = [(0, None)] * 5
NORM = np.linalg.norm


def argmin(penalty: Callable[[Any], Any], **more: Any) -> np.ndarray:
    def objective(y: np.ndarray) -> Any:
        return 0.5 * ((y - X) ** 2).sum() + penalty(y)

    return minimize(objective, np.ones(5), method="SLSQP", options={"ftol": 1e-15, "maxiter": 500}, **more).x


def of_max_norm() -> np.ndarray:
    """With the bound on absolute values as a sixth variable."""

    def objective(z: np.ndarray) -> Any:
        return 0.5 * ((z[:5] - X) ** 2).sum() + 0.7 * z[5]

    within = [{"type": "ineq", "fun": lambda z, s=sign: z[5] - s * z[:5]} for sign in (1, -1)]
    options = {"ftol": 1e-15, "maxiter": 500}
    return minimize(objective, np.ones(6), method="SLSQP", constraints=within, options=options).x[:5]


CASES: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "ridge": (proximal.ridge, lambda: argmin(lambda y: 0.35 * (y**2).sum())),
    "non-negative ridge": (proximal.non_negative_ridge, lambda: argmin(lambda y: 0.35 * (y**2).sum(), bounds=POSITIVE)),
    "l2 norm": (proximal.l2_norm, lambda: argmin(lambda y: 0.7 * NORM(y))),
    "non-negative l2 norm": (proximal.non_negative_l2_norm, lambda: argmin(lambda y: 0.7 * NORM(y), bounds=POSITIVE)),
    "max norm": (proximal.max_norm, of_max_norm),
    "negative log": (
        proximal.negative_log,
        lambda: argmin(lambda y: -0.7 * np.log(y).sum(), bounds=[(1e-9, None)] * 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_all_derivatives(name: str) -> None:
    function, oracle = CASES[name]
    with jax.enable_x64(True):
        x, weight = jnp.asarray(X), jnp.asarray(0.7)
        np.testing.assert_allclose(jax.jit(function)(x, weight), oracle(), atol=2e-6)
        assert_derivatives(function, (x, weight))


@pytest.mark.parametrize("norm", [proximal.l2_norm, proximal.non_negative_l2_norm, proximal.max_norm])
def test_nothing_is_left_near_the_origin(norm: Callable[..., Any]) -> None:
    """Groups below the weight are 0 with derivative 0, beside one that is not: batched, forward and reverse."""
    groups = jnp.array([[0.0, 0, 0], [0.1, 0.2, 0.1], [3, 4, 0]])
    found, *both = jax.jit(
        lambda groups: [jax.vmap(of, (0, None))(groups, 0.5) for of in (norm, jax.jacrev(norm), jax.jacfwd(norm))]
    )(groups)
    np.testing.assert_array_equal(found[:2], 0)
    for slopes in both:
        np.testing.assert_array_equal(slopes[:2], 0)
        assert jnp.isfinite(slopes).all()


def test_negative_log_far_out() -> None:
    """Where one form of the root subtracts equal numbers: y² - xy = weight still holds."""
    y = np.asarray(jax.jit(proximal.negative_log)(jnp.array([-1e6, -1e3, 0.0, 1e6]), 0.5), float)
    np.testing.assert_allclose(y, [5e-7, 5e-4, 0.5**0.5, 1e6], rtol=1e-5)
