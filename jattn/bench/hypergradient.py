"""Hypergradients on the CPU, against jaxopt and optimistix: one gradient from a cold start, and thirty outer steps.

Float32, one core, CPU time. The inner solver is the same for all, one of jaxopt's, but for optimistix, which has its
own L-BFGS and nothing for constrained or non-smooth inner problems. "Tuned" is a peer as one who knows it would set it:
the linear solver that suits what its own solver differentiates, and over outer steps the inner solution carried and
both tolerances loosened, as ours are beside it. Peers do not say when a gradient is wrong; ours warn, for which the
host has to be within reach, or are not-a-number ("poison"), for which it has not.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jattn import implicit
from jattn.bench.bound import Bound, logged, medians
from jattn.bench.cpu import pin_to_one_core, temporaries, timed, timed_program
from jattn.bench.inner_problems import Case, cases, digits, ridge
from jattn.bench.interleave import interleave

ROUNDS = 9
STEPS = 30
COLD, LOOSE = 1e-4, 1e-3
"""Tolerances of the inner solver: of one gradient, and over outer steps."""
ADJOINT = 1e-5
"""Of the linear solver of one gradient."""
OURS = ("jattn", "jattn, poison")
TWICE = ("ridge", "logistic")
"""Where the bar against jaxopt as it comes is 2."""
log = logging.getLogger("jattn")


def measure_hypergradient() -> list[dict[str, Any]]:
    """A row for each bar: a ratio of CPU times, medians over interleaved rounds, or of bytes."""
    pin_to_one_core()
    return logged(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    for case in cases():
        yield from _one_gradient(case)
    yield _memory(ridge(1000))
    for case in (ridge(1000), digits()):
        yield from _outer_steps(case)


def gradients_of(case: Case, tolerance: float = COLD) -> dict[str, Callable[..., Any]]:
    """(penalties, start) -> outer objective and hypergradient, by everyone who is installed and has such a solver."""
    solvers = {name: _ours(case, tolerance, check) for name, check in zip(OURS, ("warn", "poison"), strict=True)}
    solvers |= {
        "jaxopt": _swapped(case.solver(tolerance)),
        "jaxopt, tuned": _swapped(case.solver(tolerance, implicit_diff_solve=partial(case.linear_solver, tol=ADJOINT))),
    }
    if case.inner is not None:
        solvers |= _of_optimistix(case.inner, tolerance)
    return {name: _with_outer(case, solver) for name, solver in solvers.items()}


def truth(case: Case) -> np.ndarray:
    """The hypergradient in double precision, from tolerances that leave nothing to be seen in single."""
    with jax.enable_x64(True):
        whole = jax.jit(_with_outer(case, _ours(case, 1e-10, "raise", 1e-12)))
        start, penalties = (jnp.asarray(each, jnp.float64) for each in (case.start, case.penalties))
        return jax.device_get(whole(penalties, start)[1])


def _ours(case: Case, tolerance: float, check: str, adjoint: float = ADJOINT) -> Callable[..., Any]:
    conjugate = implicit.Implicit(implicit.ConjugateGradient(adjoint))
    solve = implicit.root(
        case.condition, case.solver(tolerance), adjoint=conjugate, check=check, tolerance=1000 * tolerance
    )
    return lambda penalties, start: solve(start, penalties).value


def _swapped(solver: Callable[..., Any]) -> Callable[..., Any]:
    return lambda penalties, start: solver(start, penalties)


def _with_outer(case: Case, solver: Callable[..., Any]) -> Callable[..., Any]:
    def value(penalties: jax.Array, start: jax.Array) -> jax.Array:
        return case.outer(solver(penalties, start), penalties)

    return jax.value_and_grad(value)


def _of_optimistix(inner: Callable[..., Any], tolerance: float) -> dict[str, Callable[..., Any]]:
    try:
        import lineax
        import optimistix  # pyright: ignore[reportMissingImports]
    except ImportError:
        log.warning("left out what is measured against optimistix, which is not installed: pip install 'jattn[bench]'")
        return {}

    def solver(adjoint: Any, **options: Any) -> Callable[..., Any]:
        method = optimistix.LBFGS(rtol=tolerance, atol=tolerance, history_length=10)
        return lambda penalties, start: (
            optimistix.minimise(
                inner, method, start, args=penalties, adjoint=adjoint, max_steps=500, throw=False, **options
            ).value
        )

    conjugate = optimistix.ImplicitAdjoint(linear_solver=lineax.CG(rtol=1e-4, atol=1e-6))
    return {
        "optimistix": solver(optimistix.ImplicitAdjoint()),
        "optimistix, tuned": solver(conjugate, tags=frozenset({lineax.positive_semidefinite_tag})),
    }


class Measured(NamedTuple):
    """Of a contender: a program, its temporary bytes, and the error of its gradient over the true one's size."""

    program: Any
    bytes: int
    error: float


def _measured(function: Callable[..., Any], arguments: tuple, want: np.ndarray) -> Measured | None:
    """None if it raises."""
    program: Any = jax.jit(function).lower(*arguments).compile()
    try:
        _, found = jax.block_until_ready(program(*arguments))
    except jax.errors.JaxRuntimeError:
        return None
    error = float(np.linalg.norm(np.asarray(found, np.float64) - want) / np.linalg.norm(want))
    return Measured(program, program.memory_analysis().temp_size_in_bytes, error)


def _one_gradient(case: Case) -> Iterator[dict[str, Any]]:
    arguments, want = (case.penalties, case.start), truth(case)
    tried = {name: _measured(function, arguments, want) for name, function in gradients_of(case).items()}
    found = {name: each for name, each in tried.items() if each is not None}
    seconds = interleave({name: timed_program(each.program, arguments) for name, each in found.items()}, ROUNDS)
    said = [
        f"{name} {1e3 * np.median(seconds[name]):.3g} ms, {each.bytes / 1e6:.2g} MB, error {each.error:.1e}"
        for name, each in found.items()
    ]
    said += [f"{name} raises" for name in tried if name not in found]
    said += ["optimistix has no such solver"] if case.inner is None else []
    what = f"a gradient, {case.name}"
    best = min((name for name in found if name not in OURS), key=lambda name: np.median(seconds[name]))
    for name in OURS:
        told, detail = f"{what}, {name}", "; ".join(said) if name == OURS[0] else ""
        yield Bound(1.0, at_least=True).row(
            told, f"{best}, the fastest peer, times as fast", seconds[best] / seconds[name], detail
        )
        if case.name.startswith(TWICE):
            ratios = seconds["jaxopt"] / seconds[name]
            yield Bound(2.0, at_least=True).row(told, "jaxopt as it comes, times as fast", ratios, "")


def _memory(case: Case) -> dict[str, Any]:
    """Temporaries if the inner solver may take ten times as many steps."""
    sizes = []
    for steps in (100, 1000):
        solver = case.solver(COLD, maxiter=steps)
        solve = implicit.root(case.condition, solver, adjoint=implicit.Implicit(implicit.ConjugateGradient(ADJOINT)))

        def value(penalties: jax.Array, start: jax.Array, solve: Any = solve) -> jax.Array:
            return case.outer(solve(start, penalties).value, penalties)

        shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (case.penalties, case.start)]
        sizes.append(temporaries(jax.grad(value), shapes))
    few, many = sizes
    return Bound(1.0).row(
        "temporaries, 1000 inner steps", "100 inner steps", np.array([many / few]), f"{many / 1e6:.2f} MB"
    )


def outer_runs(case: Case) -> dict[str, Callable[..., Any]]:
    """(penalties, start) -> the last outer objective after Adam's steps, by everyone who is installed."""
    optimiser = optax.adam(0.1)

    def run(step: Callable[..., Any], first: Any) -> Callable[..., Any]:
        def steps(penalties: jax.Array, start: jax.Array) -> jax.Array:
            def one(carry: Any, _: None) -> Any:
                penalties, moments, kept = carry
                value, gradient, kept = step(penalties, kept)
                updates, moments = optimiser.update(gradient, moments)
                return (optax.apply_updates(penalties, updates), moments, kept), value

            _, values = jax.lax.scan(one, (penalties, optimiser.init(penalties), first(start)), None, length=STEPS)
            return values[-1]

        return steps

    def solver(init: Any, outer: Any, tolerance: jax.Array) -> Any:
        return case.solver(tolerance)(init, outer)

    def stateful(tolerances: implicit.Tolerances | None, extrapolate: bool) -> Callable[..., Any]:
        problem = implicit.hypergradient(
            case.outer, case.condition, solver, tolerances=tolerances, extrapolate=extrapolate
        )

        def step(penalties: jax.Array, kept: Any) -> Any:
            value, gradient, kept, _ = problem.step(kept, penalties)
            return value, gradient, kept

        return run(step, problem.init)

    def cold(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda penalties, kept: (*function(penalties, kept), kept)

    loose = case.solver(LOOSE, implicit_diff_solve=partial(case.linear_solver, tol=1e-2))

    def tuned(penalties: jax.Array, kept: jax.Array) -> Any:
        def value(penalties: jax.Array) -> Any:
            inner = loose(kept, penalties)
            return case.outer(inner, penalties), inner

        (value_, inner), gradient = jax.value_and_grad(value, has_aux=True)(penalties)
        return value_, gradient, inner

    whole = gradients_of(case)
    same = implicit.Tolerances((LOOSE, LOOSE), (1e-2, 1e-2))
    runs = {
        "jattn": stateful(None, extrapolate=False),
        "jattn, extrapolating": stateful(None, extrapolate=True),
        "jattn, tuned": stateful(same, extrapolate=False),
        "jattn, tuned, extrapolating": stateful(same, extrapolate=True),
        "jaxopt, tuned": run(tuned, lambda start: start),
        "jaxopt": run(cold(whole["jaxopt"]), lambda start: start),
    }
    if "optimistix" in whole:
        runs["optimistix"] = run(cold(whole["optimistix"]), lambda start: start)
    return runs


def _outer_steps(case: Case) -> Iterator[dict[str, Any]]:
    arguments = (case.penalties, case.start)
    runs = outer_runs(case)
    losses = {name: float(jax.jit(each)(*arguments)) for name, each in runs.items()}
    seconds = interleave({name: timed(each, arguments) for name, each in runs.items()}, ROUNDS)
    detail = "; ".join(
        [medians(seconds), "outer losses: " + ", ".join(f"{name} {value:.6g}" for name, value in losses.items())]
    )
    for suffix in ("", ", extrapolating"):
        pairs = (("jattn", "jaxopt", 10.0), ("jattn", "optimistix", 10.0), ("jattn, tuned", "jaxopt, tuned", 1.15))
        for ours, theirs, least in pairs:
            if theirs in seconds:
                what = f"{STEPS} outer steps, {case.name}, {ours}{suffix}"
                ratios = seconds[theirs] / seconds[ours + suffix]
                yield Bound(least, at_least=True).row(what, f"{theirs}, times as fast", ratios, detail)
                detail = ""  # once is enough
