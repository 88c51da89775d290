"""Inner problems of the benchmark of hypergradients: ridge and logistic regression, support vectors and the lasso.

Each is learned with a penalty of its own for every weight or feature; the penalties' logarithms are the outer
variables, and the outer objective is a loss on other rows. Data are random, but for the digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jax.scipy.special import logsumexp
from jaxopt.linear_solve import solve_bicgstab, solve_cg
from jaxtyping import Array, Float
from sklearn.datasets import load_digits

from jattn import implicit

Objective = Callable[[Any, Any], Float[Array, ""]]


@dataclass(frozen=True)
class Case:
    """An inner and an outer problem, and where both begin.

    Attributes:
      name: for the table.
      inner, outer: objectives of (inner, outer); `inner` is None where it is not smooth, or constrained.
      start, penalties: the first inner and outer variables.
      solver: (tolerance, **options of jaxopt's) -> (start, penalties) -> inner variables: one of jaxopt's solvers.
      condition: of the inner solution, positive definite.
      linear_solver: jaxopt's that suits what its own solver differentiates.
    """

    name: str
    inner: Objective | None
    outer: Objective
    start: Array
    penalties: Array
    solver: Callable[..., Callable[[Any, Any], Any]]
    condition: implicit.Condition
    linear_solver: Callable[..., Any]


def cases() -> list[Case]:
    """Four problems, each of three sizes."""
    sizes = (100, 300, 1000)
    regressions = [*map(ridge, sizes), logistic(300, 30), digits(), logistic(2000, 300)]
    return [*regressions, *map(support_vectors, sizes), *map(lasso, sizes)]


def ridge(width: int) -> Case:
    """Of 2 · width rows, half as many to validate with; a penalty for each weight."""
    rows, targets, other, wanted = _regression(width, np.ones(width))

    def inner(weights: Array, penalties: Array) -> Array:
        return 0.5 * ((rows @ weights - targets) ** 2).mean() + 0.5 * (jnp.exp(penalties) * weights**2).sum()

    def outer(weights: Array, penalties: Array) -> Array:
        return 0.5 * ((other @ weights - wanted) ** 2).mean()

    return _smooth(f"ridge, {width} weights", inner, outer, jnp.zeros(width), jnp.full(width, -6.0))


def logistic(count: int, width: int) -> Case:
    """Ten classes of random rows."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2 * count, width)).astype(np.float32)
    scores = rows @ rng.standard_normal((width, 10)) + 2 * rng.standard_normal((2 * count, 10))
    return _classification(f"logistic, {10 * width} weights", rows, scores.argmax(axis=1), count)


def digits() -> Case:
    """Handwritten digits, half to validate with."""
    source: Any = load_digits()
    rows = (source.data / 16).astype(np.float32)
    return _classification("logistic, digits", rows, source.target, 898)


def support_vectors(count: int) -> Case:
    """The dual of a machine with squared hinges, min ½ Σ_j e^p_j w_j² + ½ Σ_i max(0, 1 - y_i wᵀx_i)²: α ≥ 0.

    With w_j = e^-p_j Σ_i α_i y_i x_ij. Half as many features as rows, and as many rows again to validate with.
    """
    rng = np.random.default_rng(0)
    width = count // 2
    rows = rng.standard_normal((2 * count, width)).astype(np.float32)
    scores = rows @ rng.standard_normal(width) + np.sqrt(width) * rng.standard_normal(2 * count)
    signed = rows * np.sign(scores).astype(np.float32)[:, None]
    signed, other = signed[:count], signed[count:]
    penalties = np.full(width, np.log(width) - 2, np.float32)
    rate = 1 / (np.exp(-penalties[0]) * np.linalg.norm(signed, 2) ** 2 + 1)

    def weights(dual: Array, penalties: Array) -> Array:
        return jnp.exp(-penalties) * (dual @ signed)

    def inner(dual: Array, penalties: Array) -> Array:
        return 0.5 * (jnp.exp(-penalties) * (dual @ signed) ** 2).sum() + 0.5 * (dual**2).sum() - dual.sum()

    def outer(dual: Array, penalties: Array) -> Array:
        return 0.5 * (jnp.maximum(0, 1 - other @ weights(dual, penalties)) ** 2).mean()

    def solver(tolerance: Any, **options: Any) -> Any:
        method = jaxopt.ProjectedGradient(
            inner, jaxopt.projection.projection_non_negative,
            stepsize=float(rate), maxiter=5000, tol=tolerance, **options,
        )  # fmt: skip
        return lambda start, penalties: method.run(start, None, penalties).params

    slope = jax.grad(inner)
    return Case(
        f"support vectors, {count} rows", None, outer, jnp.zeros(count), jnp.asarray(penalties), solver,
        _where_not_zero(slope, slope), solve_bicgstab,
    )  # fmt: skip


def lasso(width: int) -> Case:
    """As `ridge`, but for absolute values, with a tenth of the true weights not 0."""
    rows, targets, other, wanted = _regression(width, np.arange(width) % 10 == 0)
    strongest = np.abs(rows.T @ targets).max() / len(rows)
    rate = len(rows) / np.linalg.norm(rows, 2) ** 2

    def smooth(weights: Array) -> Array:
        return 0.5 * ((rows @ weights - targets) ** 2).mean()

    def outer(weights: Array, penalties: Array) -> Array:
        return 0.5 * ((other @ weights - wanted) ** 2).mean()

    def solver(tolerance: Any, **options: Any) -> Any:
        method = jaxopt.ProximalGradient(
            smooth, jaxopt.prox.prox_lasso, stepsize=float(rate), maxiter=5000, tol=tolerance, **options
        )
        return lambda start, penalties: method.run(start, jnp.exp(penalties)).params

    def slope(weights: Array, penalties: Array) -> Array:
        sign = jax.lax.stop_gradient(jnp.sign(weights))
        return jax.grad(smooth)(weights) + jnp.exp(penalties) * sign

    def slack(weights: Array, penalties: Array) -> Array:
        return jnp.exp(penalties) - jnp.abs(jax.grad(smooth)(weights))

    penalties = jnp.full(width, np.log(0.1 * strongest), jnp.float32)
    condition = _where_not_zero(slope, slack)
    return Case(f"lasso, {width} weights", None, outer, jnp.zeros(width), penalties, solver, condition, solve_bicgstab)


def _regression(width: int, used: np.ndarray) -> tuple[np.ndarray, ...]:
    """2 · width rows and targets, and half as many others; `used`: which true weights are not 0."""
    rng = np.random.default_rng(0)
    rows, other = (rng.standard_normal((count, width)).astype(np.float32) for count in (2 * width, width))
    weights = (used * rng.standard_normal(width) / np.sqrt(used.sum())).astype(np.float32)
    targets, wanted = (
        each @ weights + 0.5 * rng.standard_normal(len(each)).astype(np.float32) for each in (rows, other)
    )
    return rows, targets, other, wanted


def _classification(name: str, rows: np.ndarray, classes: np.ndarray, count: int) -> Case:
    """A penalty for each feature. They begin weak, so that a cold inner solve of digits takes some fifty steps."""
    labels = np.eye(10, dtype=np.float32)[classes]

    def loss(weights: Array, part: slice) -> Array:
        logits = rows[part] @ weights
        return (logsumexp(logits, axis=1) - (logits * labels[part]).sum(axis=1)).mean()

    def inner(weights: Array, penalties: Array) -> Array:
        return loss(weights, slice(count)) + 0.5 * (jnp.exp(penalties)[:, None] * weights**2).sum()

    def outer(weights: Array, penalties: Array) -> Array:
        return loss(weights, slice(count, None))

    width = rows.shape[1]
    return _smooth(name, inner, outer, jnp.zeros((width, 10)), jnp.full(width, -6.0))


def _smooth(name: str, inner: Objective, outer: Objective, start: Array, penalties: Array) -> Case:
    """By L-BFGS with ten pairs."""

    def solver(tolerance: Any, **options: Any) -> Any:
        settings: dict[str, Any] = {"maxiter": 500} | options
        method = jaxopt.LBFGS(inner, tol=tolerance, history_size=10, **settings)
        return lambda start, penalties: method.run(start, penalties).params

    return Case(name, inner, outer, start, penalties, solver, implicit.stationary(inner), solve_cg)


def _where_not_zero(slope: Callable[..., Array], slack: Callable[..., Array]) -> implicit.Condition:
    """A zero slope of the variables that are not 0. The others are held, so that its matrix is symmetric and definite.

    Args:
      slope: of the objective.
      slack: what is positive where a variable is rightly 0.
    """

    def residual(inner: Array, penalties: Array) -> Array:
        free = jax.lax.stop_gradient(inner != 0)
        return jnp.where(free, slope(jnp.where(free, inner, 0), penalties), inner)

    def activity(inner: Array, penalties: Array) -> tuple[Array, Array]:
        free = inner != 0
        return ~free, jnp.where(free, jnp.abs(inner), slack(inner, penalties)).min()

    return implicit.Condition(residual, "positive definite", 1, activity)
