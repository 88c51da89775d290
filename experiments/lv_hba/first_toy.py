"""The paper's first toy: a strongly convex inner problem, equalities that couple all variables and some on outer ones.

F = sin(cᵀx + dᵀy) + ln(‖x + y‖² + 1), f = ½‖x - y‖², subject to A y + H x = 0, and B x = 0 for the outer variables.
The exact inner solution is linear in x, so that the least hyper-objective is found on a line. Entries of matrices are
standard normal; c, d and the start have norms near 1, for from further away descent ends in another valley of the sine.

| paper | here |
| --- | --- |
| x, y | outer, inner |
| A, H, B, c, d | `Coefficients`: `of_inner`, `of_outer`, `fixed`, `outer_slope`, `inner_slope` |
| α, β, η, γ | `RELEASED` |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jattn.bilevel import LVHBA, Problem, Proximity, growing_penalty, onto_affine, solve

RELEASED = LVHBA(0.02, 0.001, 0.1, growing_penalty(1.0, 0.3), Proximity(1.0, 1.0))
"""LV-HBA as in the code released with the paper; here rows of constraints are divided by their norms besides."""
RELEASED_STEPS = 1000
ROWS, FIXED = 0.9, 0.45
"""Coupled rows and rows on outer variables, by outer variables."""


class Coefficients(NamedTuple):
    """Of one instance. `start` is in the set of allowed outer variables."""

    of_inner: Float[Array, "rows size"]
    of_outer: Float[Array, "rows size"]
    fixed: Float[Array, "fixed size"]
    outer_slope: Float[Array, " size"]
    inner_slope: Float[Array, " size"]
    start: Float[Array, " size"]


def coefficients(size: int, seed: tuple[int, ...]) -> Coefficients:
    """Args: size: of outer and of inner variables."""
    generator = np.random.default_rng(seed)
    of_inner, of_outer = (generator.normal(size=(round(ROWS * size), size)) for _ in range(2))
    fixed, (c, d, start) = (
        generator.normal(size=(round(FIXED * size), size)),
        generator.normal(size=(3, size)) / size**0.5,
    )
    start = start - np.linalg.pinv(fixed) @ (fixed @ start)
    return Coefficients(*(jnp.asarray(each, jnp.float32) for each in (of_inner, of_outer, fixed, c, d, start)))


def equality_toy(given: Coefficients, weight: float = 1.0, joint: bool = True) -> Problem:
    """Args: weight: of the outer objective; joint: with the projection on all equalities, which LV-HBA needs."""

    def outer(x: Array, y: Array) -> Array:
        wave = jnp.sin(given.outer_slope @ x + given.inner_slope @ y)
        return weight * (wave + jnp.log1p(jnp.sum((x + y) ** 2)))

    def inner(x: Array, y: Array) -> Array:
        return 0.5 * jnp.sum((x - y) ** 2)

    def equality(x: Array, y: Array) -> Array:
        return given.of_inner @ y + given.of_outer @ x

    def fixed(x: Array) -> Array:
        return x - given.fixed.T @ jnp.linalg.solve(given.fixed @ given.fixed.T, given.fixed @ x)

    zeros = jnp.zeros(given.start.shape)
    both = onto_affine(lambda x, y: jnp.concatenate([equality(x, y), given.fixed @ x]), zeros, zeros) if joint else None
    return Problem(outer, inner, equality=equality, project_outer=fixed, project_joint=both)


def exact(given: Coefficients, x: Float[Array, " size"]) -> Float[Array, " size"]:
    """The inner solution: the nearest to x with A y = -H x."""
    excess = given.of_inner @ x + given.of_outer @ x
    return x - given.of_inner.T @ jnp.linalg.solve(given.of_inner @ given.of_inner.T, excess)


def least(given: Coefficients) -> float:
    """The least hyper-objective, in float64.

    With x = N u, N a basis of {B x = 0}, it is sin(gᵀu) + ln(‖M u‖² + 1), g = Nᵀ(c + Tᵀd), M = (I + T) N, y = T x. Of
    all u with gᵀu = s the last term is least at ln(s² / κ + 1), κ = gᵀ(MᵀM)⁻¹g, which leaves s.
    """
    of_inner, of_outer, fixed, c, d, _ = (np.asarray(each, np.float64) for each in given)
    solution = np.eye(len(c)) - np.linalg.pinv(of_inner) @ (of_inner + of_outer)
    basis = np.linalg.svd(fixed)[2][len(fixed) :].T
    slope, image = basis.T @ (c + solution.T @ d), (np.eye(len(c)) + solution) @ basis
    kappa = slope @ np.linalg.solve(image.T @ image, slope)
    line = np.linspace(-2 * np.pi, 2 * np.pi, 400_001)
    return float(np.min(np.sin(line) + np.log1p(line**2 / kappa)))


def hyper_objective(given: Coefficients, x: Float[Array, " size"]) -> Float[Array, ""]:
    """The outer objective at the exact inner solution."""
    return equality_toy(given, joint=False).outer(x, exact(given, x))


def released(given: Coefficients, steps: int, weight: float = 1.0) -> Float[Array, "2"]:
    """The hyper-objective at the start and after LV-HBA's iterations as released.

    Args:
      weight: of the outer objective where the method sees it.
    """
    start = given.start, exact(given, given.start)
    end = solve(equality_toy(given, weight), RELEASED, *start, steps=steps, record_every=steps).state.outer
    return jax.vmap(lambda x: hyper_objective(given, x))(jnp.stack([given.start, end]))
