"""Solutions with derivatives: whatever the solver, by what holds at what it finds."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, no_type_check, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from jattn.implicit.adjoint import Adjoint, Implicit, Neumann, OneStep, Truncated, Unrolled
from jattn.implicit.certificate import SLACK, Certificate, certificate, derivative_certificate, doubts
from jattn.implicit.check import Check, checked_policy, factor, watched
from jattn.implicit.condition import Condition, as_condition, fixed, stationary
from jattn.implicit.iteration import Iteration
from jattn.implicit.krylov import Report
from jattn.implicit.linear_solve import tolerance_of


@runtime_checkable
class Runs(Protocol):
    """A solver that is an object, like jaxopt's."""

    def run(self, init_params: Any, *outer: Any, **named: Any) -> Any:
        """The inner variables and the solver's state."""
        ...


Solver = Callable[..., Any] | Runs
DIVERGES = "length of a term of Neumann's series over that of the last"


@no_type_check
@struct.dataclass
class Solution:
    """What a solver found.

    Attributes:
      value: the inner variables; differentiable by the outer ones.
      auxiliary: what else the solver returns, of an `Iteration` how many steps it took; no derivatives.
      certificate: how good it is; no derivatives.
    """

    value: PyTree
    auxiliary: Any
    certificate: Certificate


def root(
    condition: Condition | Callable[..., Any],
    solver: Solver,
    *,
    adjoint: Adjoint | None = None,
    has_auxiliary: bool = False,
    check: Check = "warn",
    tolerance: float = 1e-3,
    certify: bool = False,
) -> Callable[..., Solution]:
    """A solver whose answer has derivatives by the outer variables, forward and reverse, to any order.

    Args:
      condition: F with F(inner, *outer) = 0 at a solution.
      solver: (init, *outer) -> inner variables, or an object whose `run` gives those and its state, like jaxopt's. It
        is not differentiated, unless `adjoint` says so.
      adjoint: how to differentiate; `Implicit()` if None. `Unrolled` and `Truncated` need an `Iteration`, but that
        `Unrolled()` takes any solver that JAX can differentiate.
      has_auxiliary: the solver returns a pair, inner variables and anything else.
      check: what happens when a derivative is taken where the certificate's residual is over `tolerance`, its margin
        below a thousandth of that or below its distance, so that what is active may be something else at the solution,
        or a linear solve of `Implicit` ends far from its own tolerance, or the series of `Neumann` diverges. Values
        alone are never checked, nor how many terms of `Neumann` there ought to be.
      tolerance: see `check`.
      certify: certificates have a `derivative` too, for three linear solves, which a compiled program leaves out if
        nothing uses them; `check` then says when its error is over ten times `tolerance`. For `Implicit` alone.

    Returns:
      (init, *outer, **named) -> Solution. Outer variables are all arguments but `init`, and what the condition closes
      over; any pytrees; those of integers have no derivative. By `init` the derivative is zero.

    Raises:
      ValueError: the adjoint needs another solver, or cannot be certified; no such check.
      TypeError: inner variables that are not real floating point numbers.
    """
    checked_policy(check)
    adjoint = Implicit() if adjoint is None else adjoint
    if isinstance(adjoint, Truncated | Unrolled):
        _refuse_what_has_no_steps(adjoint, solver)
    if certify and not isinstance(adjoint, Implicit):
        raise ValueError(f"certify must be False unless the adjoint is Implicit; got adjoint={adjoint}")
    known = as_condition(condition)

    def solve(init: Any, *outer: Any, **named: Any) -> Solution:
        _refuse_what_is_not_real(init)
        if isinstance(adjoint, Unrolled | Truncated):
            inner, auxiliary = _through_steps(solver, adjoint, has_auxiliary, init, *outer, **named)
            made = certificate(known, inner, *outer, **named)
            for what, value, limit in doubts(made, tolerance):
                inner = watched(check, what, inner, value, limit)
            return Solution(inner, auxiliary, made)
        inner, auxiliary = _without_derivatives(solver, has_auxiliary, init, *outer, **named)
        residual, closed_over = _opened(known.residual, inner, outer, named)
        whole = replace(known, residual=lambda inner, outer, named, closed: residual(inner, outer, named, closed[0]))
        opened, preconditions = _opened_too(adjoint, inner, outer, named)
        made = certificate(known, inner, *outer, **named)
        closed = closed_over, jax.lax.stop_gradient(preconditions)
        if certify and isinstance(opened, Implicit):
            made = replace(made, derivative=derivative_certificate(whole, opened, inner, outer, named, closed))
        value = _attach(whole, opened, check, tolerance, made, inner, outer, named, closed)
        return Solution(value, auxiliary, made)

    return solve


def fixed_point(map: Callable[..., Any], solver: Solver | None = None, **options: Any) -> Callable[..., Solution]:
    """`root` for map(inner, *outer) = inner.

    Args:
      solver: as in `root`; None: up to 1000 steps of the map, until one moves 1e-6 of the inner variables' size.
      options: those of `root`.
    """
    return root(fixed(map), Iteration(map, 1000, 1e-6) if solver is None else solver, **options)


def minimise(objective: Callable[..., Float[Array, ""]], solver: Solver, **options: Any) -> Callable[..., Solution]:
    """`root` for a zero gradient of objective(inner, *outer), with a positive definite Hessian there.

    Args:
      options: those of `root`.
    """
    return root(stationary(objective), solver, **options)


def _opened_too(
    adjoint: Implicit | Neumann | OneStep, inner: Any, outer: tuple, named: dict
) -> tuple[Implicit | Neumann | OneStep, list]:
    """Its preconditioner as a function of what an opened condition is one of, and what that closes over.

    Where it closes over traced values it is made anew for each vector, as what it returns cannot be opened.
    """
    if not isinstance(adjoint, Implicit) or adjoint.preconditioner is None:
        return adjoint, []
    given = adjoint.preconditioner

    def apply(vector: Any, inner: Any, outer: tuple, named: dict) -> Any:
        return given(inner, *outer, **named)(vector)

    converted, closed_over = jax.closure_convert(apply, inner, inner, outer, named)

    def made(inner: Any, outer: tuple, named: dict, closed: tuple[list, list]) -> Callable[[Any], Any]:
        if not closed_over:
            return given(inner, *outer, **named)
        return lambda vector: converted(vector, inner, outer, named, *closed[1])

    return replace(adjoint, preconditioner=made), closed_over


def _attach(
    condition: Condition, adjoint: Implicit | Neumann | OneStep, check: Check, tolerance: float, made: Certificate,
    inner: Any, *outer: Any,
) -> Any:  # fmt: skip
    """`inner` with the derivatives of the solution that it is."""

    @jax.custom_jvp
    def solution(inner: Any, made: Certificate, *outer: Any) -> Any:
        return inner

    @solution.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        inner, made, *outer = primals
        inner = solution(inner, made, *outer)  # so that its own derivatives are there for those of higher order
        _, image = jax.jvp(lambda *outer: condition.residual(inner, *outer), tuple(outer), tuple(tangents[2:]))
        doubted = doubts(made, tolerance)
        if check and isinstance(adjoint, Neumann) and adjoint.terms > 1:
            doubted.append((DIVERGES, adjoint.growth(condition, inner, *outer), 1.0))
        for doubt in doubted:
            trusted = factor(check, *doubt)
            image = jax.tree.map(lambda each, trusted=trusted: each * trusted, image)
        judge = partial(_judge, adjoint, check) if check and isinstance(adjoint, Implicit) else None
        return inner, adjoint.tangent(condition, inner, image, judge, *outer)

    return solution(inner, made, *outer)


def _judge(adjoint: Implicit, check: Check, report: Report) -> Float[Array, ""]:
    """What a linear solve's answer is to be multiplied by."""
    limit = SLACK * tolerance_of(adjoint.linear_solver, report.residual.dtype)
    return factor(check, "relative residual of a linear solve of a derivative", report.residual, limit)


def _without_derivatives(solver: Any, has_auxiliary: bool, init: Any, *outer: Any, **named: Any) -> tuple[Any, Any]:
    """The solver's answer, of outer variables and of what it closes over without their derivatives."""
    init, outer, named = jax.lax.stop_gradient((init, outer, named))
    run, closed_over = _opened(partial(_answer, solver, has_auxiliary), init, outer, named)
    return jax.lax.stop_gradient(run(init, outer, named, jax.lax.stop_gradient(closed_over)))


def _opened(function: Callable[..., Any], first: Any, outer: tuple, named: dict) -> tuple[Callable[..., Any], list]:
    """(first, outer, named, closed over) -> function(first, *outer, **named), and what it closes over."""
    converted, closed_over = jax.closure_convert(
        lambda first, outer, named: function(first, *outer, **named), first, outer, named
    )
    return lambda first, outer, named, closed_over: converted(first, outer, named, *closed_over), closed_over


def _answer(solver: Any, has_auxiliary: bool, init: Any, *outer: Any, **named: Any) -> tuple[Any, Any]:
    """The inner variables, and what else there is."""
    if hasattr(solver, "run"):
        inner, state = solver.run(init, *outer, **named)
        return inner, state
    found = solver(init, *outer, **named)
    return found if has_auxiliary else (found, None)


def _through_steps(
    solver: Any, adjoint: Unrolled | Truncated, has_auxiliary: bool, init: Any, *outer: Any, **named: Any
) -> tuple[Any, Any]:
    init = jax.lax.stop_gradient(init)
    if isinstance(solver, Iteration):
        return solver.unrolled(adjoint, init, *outer, **named), jnp.int32(solver.steps)
    return _answer(solver, has_auxiliary, init, *outer, **named)


def _refuse_what_has_no_steps(adjoint: Unrolled | Truncated, solver: Any) -> None:
    if not isinstance(solver, Iteration) and adjoint != Unrolled():
        raise ValueError(f"solver must be an Iteration for adjoint={adjoint}; got {type(solver).__name__}")


def _refuse_what_is_not_real(init: Any) -> None:
    for leaf in jax.tree.leaves(init):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"init must be real floating point numbers; got an array of {dtype}")
