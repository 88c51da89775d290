"""Hypergradients on the CPU, against jaxopt and optimistix: one gradient from a cold start, and thirty outer steps.

Float32, one core, CPU time. The inner solver is the same for all, jaxopt's L-BFGS with ten pairs, but for optimistix,
which has its own. "Tuned" is a peer as one who knows it would set it: conjugate gradients for the adjoint, and over
outer steps the inner solution carried and both tolerances loosened, as ours are beside it. Penalties begin weak, so
that a cold inner solve of digits takes some fifty steps.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
from jax.scipy.special import logsumexp
from jaxopt.linear_solve import solve_cg
from sklearn.datasets import load_digits

from jattn import implicit
from jattn.bench.bound import Bound, logged, medians
from jattn.bench.cpu import pin_to_one_core, temporaries, timed
from jattn.bench.interleave import interleave

ROUNDS = 5
STEPS = 30
COLD, LOOSE = 1e-4, 1e-3
"""Tolerances of the inner solver: of one gradient, and over outer steps."""
log = logging.getLogger("jattn")


@dataclass(frozen=True)
class Case:
    """An inner and an outer objective of (inner, outer), and where both begin."""

    name: str
    inner: Callable[[Any, Any], jax.Array]
    outer: Callable[[Any, Any], jax.Array]
    start: jax.Array
    penalties: jax.Array


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


def cases() -> list[Case]:
    """Ridge and logistic regression, each of three sizes."""
    return [ridge(100), ridge(300), ridge(1000), logistic(300, 30), digits(), logistic(2000, 300)]


def ridge(width: int) -> Case:
    """Of 2 · width rows, half as many to validate with; the logarithm of a penalty for each weight."""
    rng = np.random.default_rng(0)
    rows, other = (rng.standard_normal((count, width)).astype(np.float32) for count in (2 * width, width))
    weights = rng.standard_normal(width).astype(np.float32) / np.sqrt(width)
    targets, wanted = (
        each @ weights + 0.5 * rng.standard_normal(len(each)).astype(np.float32) for each in (rows, other)
    )

    def inner(weights: jax.Array, penalties: jax.Array) -> jax.Array:
        return 0.5 * ((rows @ weights - targets) ** 2).mean() + 0.5 * (jnp.exp(penalties) * weights**2).sum()

    def outer(weights: jax.Array, penalties: jax.Array) -> jax.Array:
        return 0.5 * ((other @ weights - wanted) ** 2).mean()

    return Case(f"ridge, {width} weights", inner, outer, jnp.zeros(width), jnp.full(width, -6.0))


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


def _classification(name: str, rows: np.ndarray, classes: np.ndarray, count: int) -> Case:
    """The logarithm of a penalty for each feature."""
    labels = np.eye(10, dtype=np.float32)[classes]

    def loss(weights: jax.Array, part: slice) -> jax.Array:
        logits = rows[part] @ weights
        return (logsumexp(logits, axis=1) - (logits * labels[part]).sum(axis=1)).mean()

    def inner(weights: jax.Array, penalties: jax.Array) -> jax.Array:
        return loss(weights, slice(count)) + 0.5 * (jnp.exp(penalties)[:, None] * weights**2).sum()

    def outer(weights: jax.Array, penalties: jax.Array) -> jax.Array:
        return loss(weights, slice(count, None))

    width = rows.shape[1]
    return Case(name, inner, outer, jnp.zeros((width, 10)), jnp.full(width, -6.0))


def lbfgs(case: Case, tolerance: Any, **options: Any) -> jaxopt.LBFGS:
    """The inner solver."""
    return jaxopt.LBFGS(case.inner, maxiter=500, tol=tolerance, history_size=10, **options)


def gradients_of(case: Case, tolerance: float = COLD) -> dict[str, Callable[..., Any]]:
    """(penalties, start) -> outer objective and hypergradient, by everyone who is installed."""
    conjugate = implicit.Implicit(implicit.ConjugateGradient(1e-5))
    ours = implicit.minimise(case.inner, lbfgs(case, tolerance), adjoint=conjugate, tolerance=10 * tolerance)
    solvers: dict[str, Callable[..., Any]] = {
        "jattn": lambda penalties, start: ours(start, penalties).value,
        "jaxopt": lambda penalties, start: lbfgs(case, tolerance).run(start, penalties).params,
        "jaxopt, tuned": lambda penalties, start: (
            lbfgs(case, tolerance, implicit_diff_solve=partial(solve_cg, tol=1e-5)).run(start, penalties).params
        ),
    }
    solvers |= _of_optimistix(case, tolerance)

    def with_outer(solver: Callable[..., Any]) -> Callable[..., Any]:
        def value(penalties: jax.Array, start: jax.Array) -> jax.Array:
            return case.outer(solver(penalties, start), penalties)

        return jax.value_and_grad(value)

    return {name: with_outer(solver) for name, solver in solvers.items()}


def _of_optimistix(case: Case, tolerance: float) -> dict[str, Callable[..., Any]]:
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
                case.inner, method, start, args=penalties, adjoint=adjoint, max_steps=500, throw=False, **options
            ).value
        )

    conjugate = optimistix.ImplicitAdjoint(linear_solver=lineax.CG(rtol=1e-4, atol=1e-6))
    return {
        "optimistix": solver(optimistix.ImplicitAdjoint()),
        "optimistix, tuned": solver(conjugate, tags=frozenset({lineax.positive_semidefinite_tag})),
    }


def _one_gradient(case: Case) -> Iterator[dict[str, Any]]:
    arguments = (case.penalties, case.start)
    contenders = gradients_of(case)
    exact = gradients_of(case, 1e-7)["jattn"]
    _, want = jax.jit(exact)(*arguments)
    errors = {}
    for name, function in contenders.items():
        _, found = jax.jit(function)(*arguments)
        errors[name] = float(jnp.linalg.norm(found - want) / jnp.linalg.norm(want))
    seconds = interleave({name: timed(each, arguments) for name, each in contenders.items()}, ROUNDS)
    tuned = [name for name in contenders if name != "jattn"]
    fastest = np.min([np.median(seconds[name]) for name in tuned])
    best = next(name for name in tuned if np.median(seconds[name]) == fastest)
    detail = "; ".join(
        [medians(seconds), "errors: " + ", ".join(f"{name} {value:.1e}" for name, value in errors.items())]
    )
    what = f"a gradient, {case.name}"
    yield Bound(1.0, at_least=True).row(
        what, f"{best}, the fastest peer, times as fast", seconds[best] / seconds["jattn"], detail
    )
    yield Bound(2.0, at_least=True).row(
        what,
        "jaxopt as it comes, times as fast",
        seconds["jaxopt"] / seconds["jattn"],
        medians({"jattn": seconds["jattn"]}),
    )


def _memory(case: Case) -> dict[str, Any]:
    """Temporaries if the inner solver may take ten times as many steps."""
    sizes = []
    for steps in (100, 1000):
        solver = jaxopt.LBFGS(case.inner, maxiter=steps, tol=COLD, history_size=10)
        solve = implicit.minimise(case.inner, solver, adjoint=implicit.Implicit(implicit.ConjugateGradient(1e-5)))

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
        return lbfgs(case, tolerance).run(init, outer).params

    def stateful(tolerances: implicit.Tolerances | None) -> Callable[..., Any]:
        problem = implicit.hypergradient(case.outer, implicit.stationary(case.inner), solver, tolerances=tolerances)

        def step(penalties: jax.Array, kept: Any) -> Any:
            value, gradient, kept, _ = problem.step(kept, penalties)
            return value, gradient, kept

        return run(step, problem.init)

    def cold(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda penalties, kept: (*function(penalties, kept), kept)

    loose = jaxopt.LBFGS(
        case.inner, maxiter=500, tol=LOOSE, history_size=10,
        implicit_diff_solve=partial(solve_cg, tol=1e-2),
    )  # fmt: skip

    def tuned(penalties: jax.Array, kept: jax.Array) -> Any:
        def value(penalties: jax.Array) -> Any:
            inner = loose.run(kept, penalties).params
            return case.outer(inner, penalties), inner

        (value_, inner), gradient = jax.value_and_grad(value, has_aux=True)(penalties)
        return value_, gradient, inner

    whole = gradients_of(case)
    runs = {
        "jattn": stateful(None),
        "jattn, tuned": stateful(implicit.Tolerances((LOOSE, LOOSE), (1e-2, 1e-2))),
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
    pairs = (("jattn", "jaxopt", 10.0), ("jattn", "optimistix", 10.0), ("jattn, tuned", "jaxopt, tuned", 1.15))
    for ours, theirs, least in pairs:
        if theirs in seconds:
            what = f"{STEPS} outer steps, {case.name}, {ours}"
            ratios = seconds[theirs] / seconds[ours]
            yield Bound(least, at_least=True).row(what, f"{theirs}, times as fast", ratios, detail)
