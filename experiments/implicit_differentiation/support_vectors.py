"""The penalty of a multiclass support vector machine, learned on other digits by the derivative of the dual solution.

Crammer and Singer's machine is min_W ½θ‖W‖² + Σ_i max_c (1 - Y_ic + w_cᵀx_i) - w_yᵀx_i. Its dual variables are a point
of the simplex for each row, that minimises ½‖Xᵀ(Y - x)‖²/θ + <x, Y>, with W = Xᵀ(Y - x)/θ. Here that is multiplied by θ,
so that no step depends on it, and X is divided by its largest singular value, so that a step of 1 never ascends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jattn import implicit
from jattn.data.images import digits
from jattn.implicit import projections

CLASSES = 10
MIRROR_RATE = 30.0
"""Of mirror descent. Entries of the simplex are small, so that its steps may be long."""
TINY = 1e-9
"""Below this a dual variable counts as zero where its logarithm is taken."""
SOLVERS = ("projected gradient", "mirror descent", "block coordinate descent")
MAPPINGS = ("projected gradient", "mirror descent")


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
    features = jnp.asarray(features / np.linalg.norm(features[:training], 2), jnp.float32)
    labels = jnp.asarray(np.eye(CLASSES, dtype=np.float32)[source.labels[order]])
    return Data(features[:training], labels[:training], features[training:], labels[training:])


def dual(x: Float[Array, "rows classes"], theta: Float[Array, ""], rows: Array, labels: Array) -> Float[Array, ""]:
    """½‖Xᵀ(Y - x)‖² + θ <x, Y>."""
    return 0.5 * ((rows.T @ (labels - x)) ** 2).sum() + theta * (x * labels).sum()


def weights(x: Float[Array, "rows classes"], theta: Float[Array, ""], rows: Array, labels: Array) -> Array:
    """W, features by classes."""
    return rows.T @ (labels - x) / theta


def solver(name: str, steps: int) -> implicit.Iteration:
    """Steps of one of `SOLVERS`; outer variables are θ, X and Y."""
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


def outer_loss(log_theta: Float[Array, ""], data: Data, name: str, steps: int, mapping: str | None) -> Float[Array, ""]:
    """Half the mean squared error of the machine's scores on the other digits, differentiable by log θ.

    Args:
      name, steps: of the solver, from the middle of every simplex.
      mapping: what is differentiated; the solver's steps if None.
    """
    linear_solver = implicit.Gmres(1e-2, most=200, restart=20)
    adjoint = implicit.Unrolled() if mapping is None else implicit.Implicit(linear_solver)
    # A solve that stagnates is worth less than a warning for each: the gradients' errors are measured.
    solve = implicit.root(condition(mapping or MAPPINGS[0]), solver(name, steps), adjoint=adjoint, check=None)
    theta = jnp.exp(log_theta)
    x = solve(jnp.full_like(data.labels, 1 / CLASSES), theta, data.rows, data.labels).value
    scores = data.other @ weights(x, theta, data.rows, data.labels)
    return 0.5 * ((scores - data.wanted) ** 2).sum(axis=1).mean()


def direct(log_theta: Float[Array, ""], data: Data, name: str, steps: int) -> Float[Array, ""]:
    """The derivative of `outer_loss` with the dual variables held: what is left without their response."""
    found = solver(name, steps)(jnp.full_like(data.labels, 1 / CLASSES), jnp.exp(log_theta), data.rows, data.labels)

    def held(log_theta: Array) -> Array:
        scores = data.other @ weights(found, jnp.exp(log_theta), data.rows, data.labels)
        return 0.5 * ((scores - data.wanted) ** 2).sum(axis=1).mean()

    return jax.grad(held)(log_theta)


def program(name: str, steps: int, mapping: str | None) -> Callable[[Array, Data], Any]:
    """(log θ, data) to the outer loss and its derivative."""
    return jax.value_and_grad(lambda log_theta, data: outer_loss(log_theta, data, name, steps, mapping))


def _onto_simplices(x: Float[Array, "rows classes"]) -> Float[Array, "rows classes"]:
    return jax.vmap(projections.simplex)(x)


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
            new = projections.simplex(old - (theta * label - row @ scaled) / (row @ row))
            return scaled - row[:, None] * (new - old), new

        return jax.lax.scan(one, rows.T @ (labels - x), (x, rows, labels))[1]

    return implicit.Iteration(step, steps)
