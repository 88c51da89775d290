"""The penalty of a multiclass support vector machine, learned on other digits by the derivative of the dual solution.

Crammer and Singer's machine is min_W ½θ‖W‖² + Σ_i max_c (1 - Y_ic + w_cᵀx_i) - w_yᵀx_i. Its dual variables are a point
of the simplex for each row, that minimises ½‖Xᵀ(Y - x)‖²/θ + <x, Y>, with W = Xᵀ(Y - x)/θ. Here that is
multiplied by θ, so that no step depends on it, and X is divided by its largest singular value, so that a step of 1
never ascends.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.implicit_differentiation.config import SupportVectors
from jattn import implicit
from jattn.data.images import digits

log = logging.getLogger("jattn")
CLASSES = 10
MIRROR_RATE = 30.0
"""Of mirror descent, by trial: stable with 200 digits and with 898, not with 50, whose features are longer."""
TINY = 1e-9
"""Below this a dual variable counts as zero where its logarithm is taken."""
TOLERANCE = 1e-3
"""Of adjoint equations, relative: on a small machine 1e-2 leaves a hypergradient off by a tenth, 1e-3 by 0.002."""
MAPPINGS = ("projected gradient", "mirror descent")
WAYS = (*MAPPINGS, None)
"""Of differentiation; None: through the solver's steps."""


class Data(NamedTuple):
    """Rows of features with their classes, one-hot."""

    rows: Float[Array, "training features"]
    labels: Float[Array, "training classes"]
    other: Float[Array, "validation features"]
    wanted: Float[Array, "validation classes"]


def split(seed: int, width: int, training: int) -> Data:
    """Digits in random order, with random Fourier features of a Gaussian kernel (Rahimi and Recht 2007).

    Args:
      width: number of features.
      training: rows to train with; the rest is for validation.
    """
    generator = np.random.default_rng(seed)
    source = digits()
    order = generator.permutation(len(source.labels))
    pixels = source.images.reshape(len(order), -1)[order] / source.brightest
    some = pixels[:200]
    distance = np.median(np.linalg.norm(some[:, None] - some[None], axis=-1))
    directions = generator.normal(size=(pixels.shape[1], width)) / distance
    features = np.cos(pixels @ directions + generator.uniform(0, 2 * np.pi, width))
    features = features - features[:training].mean(axis=0)
    features = (features / np.linalg.norm(features[:training], 2)).astype(np.float32)
    labels = np.eye(CLASSES, dtype=np.float32)[source.labels[order]]
    parts = features[:training], labels[:training], features[training:], labels[training:]
    return Data(*map(jnp.asarray, parts))


def dual(x: Float[Array, "rows classes"], theta: Float[Array, ""], rows: Array, labels: Array) -> Float[Array, ""]:
    """½‖Xᵀ(Y - x)‖² + θ <x, Y>."""
    return 0.5 * (_classes_by_features(x, rows, labels) ** 2).sum() + theta * (x * labels).sum()


def weights(x: Float[Array, "rows classes"], theta: Float[Array, ""], rows: Array, labels: Array) -> Array:
    """W, features by classes."""
    return _classes_by_features(x, rows, labels).T / theta


def _classes_by_features(x: Array, rows: Array, labels: Array) -> Float[Array, "classes features"]:
    """(Y - x)ᵀX, so that neither this product nor its derivatives have X transposed: XLA would do so in every step."""
    return (labels - x).T @ rows


def solver(name: str, steps: int) -> implicit.Iteration:
    """Steps, or sweeps over all rows, of a solver of `config.SOLVERS`; outer variables are θ, X and Y."""
    return {
        "projected gradient": _accelerated,
        "mirror descent": _mirrored,
        "block coordinate descent": _by_rows,
    }[name](steps)


def condition(name: str) -> implicit.Condition:
    """The fixed point of one of `MAPPINGS`; outer variables as those of a solver."""

    def objective(x: Array, smooth: tuple) -> Float[Array, ""]:
        return dual(x, *smooth)

    if name == "projected gradient":
        whole = implicit.projected_gradient(objective, lambda x, _: _onto_simplices(x))
    else:
        logarithm = lambda x: jnp.log(jnp.maximum(x, TINY))  # noqa: E731
        whole = implicit.mirror_descent(objective, lambda y, _: jax.nn.softmax(y), logarithm, MIRROR_RATE)
    return implicit.Condition(lambda x, *outer: whole.residual(x, outer, None))


class Found(NamedTuple):
    """Attributes:
    loss: half the mean squared error of the machine's scores on the other digits.
    slope: its derivative by log θ.
    direct: that derivative with the dual variables held, as if they did not respond.
    """

    loss: Float[Array, ""]
    slope: Float[Array, ""]
    direct: Float[Array, ""]


def hypergradient(log_theta: Float[Array, ""], data: Data, name: str, steps: int, mapping: str | None) -> Found:
    """The outer loss and its derivatives.

    Args:
      name, steps: of the solver, from the middle of every simplex.
      mapping: what is differentiated, of `MAPPINGS`; the solver's steps if None.
    """
    adjoint = implicit.Unrolled() if mapping is None else implicit.Implicit(implicit.Automatic(TOLERANCE, most=200))
    # Of linear solves that stagnate nothing is said here: the hypergradients' errors are measured.
    solve = implicit.root(condition(mapping or MAPPINGS[0]), solver(name, steps), adjoint=adjoint, check=None)

    def loss(log_theta: Array) -> tuple[Array, Array]:
        theta = jnp.exp(log_theta)
        x = solve(jnp.full_like(data.labels, 1 / CLASSES), theta, data.rows, data.labels).value
        scores = data.other @ weights(x, theta, data.rows, data.labels)
        off = scores - data.wanted
        # W is x's over θ, so that scores fall by themselves as log θ grows.
        return 0.5 * (off**2).sum(axis=1).mean(), -(off * scores).sum(axis=1).mean()

    (value, direct), slope = jax.value_and_grad(loss, has_aux=True)(log_theta)
    return Found(value, slope, direct)


class Measured(NamedTuple):
    """By seed, number of features, solver and way of differentiation: both mappings, then unrolling.

    Attributes:
      first, last: outer loss before the first and after the last outer step.
      slope, direct: of the first outer step, as in `Found`.
      seconds: of CPU time, for one hypergradient, the mean of all outer steps.
      bytes: temporary ones of the compiled program, of no seed; `doubled` with twice the solver's steps, with the
        fewest features alone.
    """

    first: Float[np.ndarray, "seeds widths solvers ways"]
    last: Float[np.ndarray, "seeds widths solvers ways"]
    slope: Float[np.ndarray, "seeds widths solvers ways"]
    direct: Float[np.ndarray, "seeds widths solvers ways"]
    seconds: Float[np.ndarray, "seeds widths solvers ways"]
    bytes: Float[np.ndarray, "widths solvers ways"]
    doubled: Float[np.ndarray, "solvers ways"]


def measure(config: SupportVectors, seed: int, between: Callable[[], None]) -> Measured:
    """Every solver and way of differentiation in turn, seed by seed.

    Args:
      between: called between hypergradient descents.
    """
    counts = config.seeds, len(config.widths), len(config.solvers), len(WAYS)
    numbers = {name: np.zeros(counts) for name in ("first", "last", "slope", "direct", "seconds")}
    memory, doubled = np.zeros(counts[1:]), np.zeros(counts[2:])
    for place, width in enumerate(config.widths):
        splits = [split(seed + each, width, config.training) for each in range(config.seeds)]
        for which, name in enumerate(config.solvers):
            programs = [_compiled(splits[0], name, config.steps_of(name), way, config.rate) for way in WAYS]
            memory[place, which] = [_bytes(each) for each in programs]
            if place == 0:
                twice = (_compiled(splits[0], name, 2 * config.steps_of(name), way, config.rate) for way in WAYS)
                doubled[which] = [_bytes(each) for each in twice]
            for each, data in enumerate(splits):
                for way, program in enumerate(programs):
                    between()
                    found = _descend(program, data, config)
                    for key, value in found.items():
                        numbers[key][each, place, which, way] = value
            log.info(
                "%s, %d features: %s s for a hypergradient by %s",
                name,
                width,
                numbers["seconds"][:, place, which].mean(axis=0).round(3),
                ", ".join(way or "unrolling" for way in WAYS),
            )
    return Measured(**numbers, bytes=memory, doubled=doubled)


def _compiled(data: Data, name: str, steps: int, way: str | None, rate: float) -> Any:
    """(log θ, Adam's moments, data) to what is found and the next log θ and moments; compiled."""
    optimiser = optax.adam(rate)

    def step(log_theta: Array, moments: Any, data: Data) -> tuple[Found, Any, Any]:
        found = hypergradient(log_theta, data, name, steps, way)
        updates, moments = optimiser.update(found.slope, moments)
        return found, optax.apply_updates(log_theta, updates), moments

    start = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(step).lower(start, jax.eval_shape(optimiser.init, start), data).compile()


def _bytes(program: Any) -> int:
    return program.memory_analysis().temp_size_in_bytes


def _descend(program: Any, data: Data, config: SupportVectors) -> dict[str, float]:
    """Adam on log θ, and the loss where it ends."""
    log_theta = jnp.float32(config.start)
    moments, found, seconds = optax.adam(config.rate).init(log_theta), [], []
    for _ in range(config.outer_steps + 1):
        before = time.process_time()
        each, log_theta, moments = jax.block_until_ready(program(log_theta, moments, data))
        seconds.append(time.process_time() - before)
        found.append(each)
    numbers = found[0].loss, found[-1].loss, found[0].slope, found[0].direct, np.mean(seconds)
    return dict(zip(("first", "last", "slope", "direct", "seconds"), map(float, numbers), strict=True))


def _onto_simplices(x: Float[Array, "rows classes"]) -> Float[Array, "rows classes"]:
    return jax.vmap(implicit.projections.simplex)(x)


def _accelerated(steps: int) -> implicit.Iteration:
    """Projected gradient with Nesterov's momentum."""

    def step(state: tuple, *outer: Any) -> tuple:
        x, ahead, momentum = state
        after = _onto_simplices(ahead - jax.grad(dual)(ahead, *outer))
        larger = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        return after, after + (momentum - 1) / larger * (after - x), larger

    return implicit.Iteration(step, steps, start=lambda x: (x, x, jnp.ones(())), read=lambda state: state[0])


def _mirrored(steps: int) -> implicit.Iteration:
    """By the negative entropy, in logarithms."""

    def step(logarithms: Array, *outer: Any) -> Array:
        slope = jax.grad(dual)(jnp.exp(logarithms), *outer)
        return jax.nn.log_softmax(logarithms - MIRROR_RATE * slope)

    return implicit.Iteration(step, steps, start=jnp.log, read=jnp.exp)


def _by_rows(steps: int) -> implicit.Iteration:
    """Each row's variables in turn, by an exact step for its own curvature; θ W is carried from row to row."""

    def step(x: Array, theta: Array, rows: Array, labels: Array) -> Array:
        def one(scaled: Array, of_row: tuple) -> tuple[Array, Array]:
            old, row, label = of_row
            new = implicit.projections.simplex(old - (theta * label - row @ scaled) / (row @ row))
            return scaled - row[:, None] * (new - old), new

        return jax.lax.scan(one, _classes_by_features(x, rows, labels).T, (x, rows, labels))[1]

    return implicit.Iteration(step, steps)
