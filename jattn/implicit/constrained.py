"""Conditions of constrained and of non-smooth problems. Each is to be given to `root`.

What is active, or out of the support, is held where it is: derivatives hold while it stays so. How near that is to its
end is in certificates, for all but `mirror_descent` and `newton`, whose maps have no kinks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from jattn.implicit.condition import Condition, fixed, stationary
from jattn.implicit.kinks import nearest_kink

Objective = Callable[..., Float[Array, ""]]


class PrimalDual(NamedTuple):
    """Inner variables and multipliers.

    Attributes:
      primal: the inner variables.
      equality: a multiplier ν for each equality, of either sign; None if there are none.
      inequality: a multiplier λ ≥ 0 for each inequality; None if there are none.
    """

    primal: PyTree
    equality: Float[Array, " equalities"] | None = None
    inequality: Float[Array, " inequalities"] | None = None


def kkt(
    objective: Objective,
    equality: Callable[..., Float[Array, " equalities"]] | None = None,
    inequality: Callable[..., Float[Array, " inequalities"]] | None = None,
) -> Condition:
    """Of a `PrimalDual`: ∇f + ∇Hᵀν + ∇Gᵀλ = 0, H = 0, and for each inequality G = 0 if active, otherwise λ = 0.

    An inequality is active if λ > -G. With what is active held fixed, rows G and -λ make the derivative symmetric; rows
    λ · G, as textbooks and jaxopt have them, do not, and are near to singular where a multiplier is small.

    Args:
      objective, equality, inequality: of (primal, *outer); f is minimised with H = 0 and G ≤ 0.
    """

    def slackness(inner: PrimalDual, *outer: Any, **named: Any) -> tuple[Any, Any]:
        """G, and where it is active."""
        if inequality is None:
            return None, None
        below = inequality(inner.primal, *outer, **named)
        return below, jax.lax.stop_gradient(jnp.asarray(inner.inequality) > -below)

    def residual(inner: PrimalDual, *outer: Any, **named: Any) -> PrimalDual:
        below, active = slackness(inner, *outer, **named)

        def lagrangian(primal: Any) -> Array:
            total = objective(primal, *outer, **named)
            if equality is not None:
                total += equality(primal, *outer, **named) @ jnp.asarray(inner.equality)
            if inequality is not None:
                total += inequality(primal, *outer, **named) @ jnp.where(active, jnp.asarray(inner.inequality), 0)
            return total

        equal = None if equality is None else equality(inner.primal, *outer, **named)
        last = None if below is None else jnp.where(active, below, -jnp.asarray(inner.inequality))
        return PrimalDual(jax.grad(lagrangian)(inner.primal), equal, last)

    def activity(inner: PrimalDual, *outer: Any, **named: Any) -> tuple[Bool[Array, " inequalities"], Array]:
        below, active = slackness(inner, *outer, **named)
        margins = jnp.where(active, jnp.asarray(inner.inequality), -below)
        return active, jnp.min(margins, initial=jnp.inf)

    return Condition(residual, "symmetric", 1, None if inequality is None else activity)


def kkt_of_quadratic_program() -> Condition:
    """`kkt` of ½ xᵀQx + cᵀx with E x = d, M x ≤ h; outer variables (Q, c), (E, d), (M, h), the last two may be None."""

    def condition(inner: PrimalDual, objective: tuple, equality: tuple | None, inequality: tuple | None) -> PrimalDual:
        return of(equality, inequality).residual(inner, objective, equality, inequality)

    def of(equality: tuple | None, inequality: tuple | None) -> Condition:
        return kkt(
            lambda x, objective, *_: 0.5 * x @ objective[0] @ x + objective[1] @ x,
            None if equality is None else lambda x, _, equality, __: equality[0] @ x - equality[1],
            None if inequality is None else lambda x, _, __, inequality: inequality[0] @ x - inequality[1],
        )

    def activity(inner: PrimalDual, objective: tuple, equality: tuple | None, inequality: tuple | None) -> Any:
        found = of(equality, inequality).activity
        nothing = jnp.zeros(0, bool), jnp.asarray(jnp.inf, inner.primal.dtype)
        return nothing if found is None else found(inner, objective, equality, inequality)

    return Condition(condition, "symmetric", 1, activity)


def projected_gradient(objective: Objective, projection: Callable[..., Any], rate: float = 1.0) -> Condition:
    """x = projection(x - rate · ∇f(x, θ), κ), of outer variables θ and κ. The derivatives do not depend on the rate."""
    return proximal_gradient(objective, lambda inner, set_, _: projection(inner, set_), rate)


def proximal_gradient(objective: Objective, proximal: Callable[..., Any], rate: float = 1.0) -> Condition:
    """x = proximal(x - rate · ∇f(x, θ), κ, rate), of outer variables θ and κ. Derivatives do not depend on the rate.

    Args:
      proximal: (y, κ, rate) -> argmin of ½‖x - y‖² + rate · g(x, κ), as jaxopt's.
    """

    return _of_operator(
        lambda point, rest: proximal(point, rest, rate),
        lambda inner, smooth: _downhill(objective, rate, inner, smooth),
        rate,
    )


def block_proximal_gradient(
    objective: Objective, proximals: Sequence[Callable[..., Any]], rates: Sequence[float]
) -> Condition:
    """`proximal_gradient` with an operator and a rate for each entry of the inner variables, which are a sequence.

    Its outer variables are θ and a sequence of κ.

    Raises:
      ValueError: not as many rates as operators.
    """
    if len(proximals) != len(rates):
        raise ValueError(f"rates must be as many as the {len(proximals)} proximals; got {len(rates)}")

    def point(inner: Sequence[Any], smooth: Any) -> list[Any]:
        slopes = jax.grad(objective)(inner, smooth)
        return [
            jax.tree.map(lambda x, slope, rate=rate: x - rate * slope, *pair)
            for rate, *pair in zip(rates, inner, slopes, strict=True)
        ]

    def operator(points: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        return [
            proximal(each, of_each, rate)
            for proximal, rate, each, of_each in zip(proximals, rates, points, rest, strict=True)
        ]

    return _of_operator(operator, point, max(rates))


def mirror_descent(
    objective: Objective, projection: Callable[..., Any], mirror: Callable[[Any], Any], rate: float = 1.0
) -> Condition:
    """x = projection(mirror(x) - rate · ∇f(x, θ), κ), of outer variables θ and κ.

    Args:
      projection: from the mirrored space, by the Bregman divergence: softmax onto the simplex, for logarithms.
      mirror: the gradient of the function that generates the divergence: log for the negative entropy.
    """

    def map(inner: Any, smooth: Any, rest: Any) -> Any:
        slope = jax.grad(objective)(inner, smooth)
        return projection(jax.tree.map(lambda x, slope: x - rate * slope, mirror(inner), slope), rest)

    return fixed(map)


def newton(condition: Condition | Callable[..., Any], rate: float = 1.0) -> Condition:
    """x = x - rate · (∂F/∂x)⁻¹ F(x, *outer), by dense matrices. Its derivatives are those of F = 0 itself."""
    residual = condition.residual if isinstance(condition, Condition) else condition

    def map(inner: Any, *outer: Any, **named: Any) -> Any:
        flat, restore = ravel_pytree(inner)

        def of_flat(flat: Array) -> Array:
            return ravel_pytree(residual(restore(flat), *outer, **named))[0]

        return restore(flat - rate * jnp.linalg.solve(jax.jacfwd(of_flat)(flat), of_flat(flat)))

    return fixed(map)


class ConeSolution(NamedTuple):
    """Of min cᵀx with A x + s = b, s in K: x, and y - s, whose parts in the dual cone and minus K are y and -s.

    Attributes:
      primal: x.
      split: y - s, by which dual variables y and slacks s are found.
    """

    primal: Float[Array, " variables"]
    split: Float[Array, " rows"]


def conic(dual_projection: Callable[[Float[Array, " rows"]], Float[Array, " rows"]]) -> Condition:
    """Of a `ConeSolution` and outer variables (A, b, c): Aᵀy + c = 0 and A x + s = b.

    The residual map of the homogeneous self-dual embedding (Busseti, Moursi and Boyd 2019, arXiv 1811.02157) where its
    scale is 1, as it is at solvable problems.

    Args:
      dual_projection: onto K*, with derivatives.
    """

    def residual(
        inner: ConeSolution, A: Float[Array, "rows variables"], b: Float[Array, " rows"], c: Float[Array, " variables"]
    ) -> ConeSolution:
        dual = dual_projection(inner.split)
        slack = dual - inner.split
        return ConeSolution(A.T @ dual + c, b - A @ inner.primal - slack)

    def activity(inner: ConeSolution, *_: Any) -> tuple[Bool[Array, " rows"], Array]:
        return nearest_kink(dual_projection, lambda split: split, inner.split, 1.0)

    return Condition(residual, activity=activity)


def _of_operator(operator: Callable[..., Any], point: Callable[..., Any], rate: float) -> Condition:
    """operator(point(inner, θ), κ) = inner, whose kinks are those of the operator."""

    def map(inner: Any, smooth: Any, rest: Any) -> Any:
        found = operator(point(inner, smooth), rest)
        return jax.tree.unflatten(jax.tree.structure(inner), jax.tree.leaves(found))

    def activity(inner: Any, smooth: Any, rest: Any) -> tuple[Bool[Array, " entries"], Array]:
        return nearest_kink(lambda moved: operator(moved, rest), lambda inner: point(inner, smooth), inner, rate)

    return replace(fixed(map), activity=activity)


def _downhill(objective: Objective, rate: float, inner: Any, smooth: Any) -> Any:
    return jax.tree.map(lambda x, slope: x - rate * slope, inner, stationary(objective).residual(inner, smooth))
