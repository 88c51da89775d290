"""Group lasso whose penalties are learned: f = ‖A y - b‖² / 2n subject to ‖y_g‖ <= x_g, F the same on other samples.

Data are those of Feng and Simon (2018, arXiv 1703.09813) in another size: standard normal features in groups, of the
first three of which half the coefficients are 1 to 5, and noise of half the signal's standard deviation. Radii are
outer variables, coefficients inner ones, and the set of both is a product of second-order cones, on which projection is
a closed form. Groups are sparse, and coefficients within a group are not penalised one by one.

Samples are more than coefficients: else large radii leave many inner solutions, among which LV-HBA takes what suits the
validation samples, and no other method sees that.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from experiments.lv_hba.config import GroupLasso
from jattn import implicit
from jattn.bilevel import LVHBA, Problem, Proximity, growing_penalty, solve
from jattn.implicit.projections import second_order_cone

TRUE_GROUPS = 3
SMOOTHED = 0.3
"""δ of the norms √(‖y‖² + δ²) - δ that LV-HBA differentiates: the curvature of others is without bound at 0."""
STEPS, PENALTIES = (0.005, 0.01), (0.05, 0.2, 1.0)
"""Of LV-HBA, tried on validation samples. Steps are well below the saddle point's, or the inner variables run away."""
SADDLE_STEP, PROXIMITY = 0.05, 10.0
RADII = (0.01, 10.0)
"""Between which grid and random search look."""


class Samples(NamedTuple):
    """Features and targets."""

    training: tuple[Float[Array, "samples size"], Float[Array, " samples"]]
    validation: tuple[Float[Array, "samples size"], Float[Array, " samples"]]
    test: tuple[Float[Array, "tests size"], Float[Array, " tests"]]


class Compared(NamedTuple):
    """Validation loss and test error (both half the mean square) at exact inner solutions, by way of choosing radii.

    Attributes:
      learned: by LV-HBA.
      common: one radius for all groups, on a grid.
      searched: a radius for each group at random, as many tries.
      differentiated: by Adam on hypergradients of implicit differentiation.
      moved: of LV-HBA's radii from their start.
    """

    learned: Float[Array, "2"]
    common: Float[Array, "2"]
    searched: Float[Array, "2"]
    differentiated: Float[Array, "2"]
    moved: Float[Array, ""]


def samples(given: GroupLasso, seed: tuple[int, ...]) -> Samples:
    """Of one true regression."""
    generator = np.random.default_rng(seed)
    size, half = given.groups * given.width, given.width // 2
    truth = np.zeros((given.groups, given.width))
    truth[:TRUE_GROUPS, :half] = 1 + np.arange(half) % 5
    counts = (given.training, given.training, 10 * given.training)
    features = generator.normal(size=(sum(counts), size))
    signal = features @ truth.ravel()
    targets = signal + 0.5 * np.linalg.norm(truth) * generator.normal(size=len(signal))
    ends = np.cumsum(counts)[:2]
    arrays = (jnp.asarray(each, jnp.float32) for each in (*np.split(features, ends), *np.split(targets, ends)))
    known, judged, test, known_targets, judged_targets, test_targets = arrays
    return Samples((known, known_targets), (judged, judged_targets), (test, test_targets))


def half_mean_square(part: tuple[Array, Array], coefficients: Float[Array, "groups width"]) -> Float[Array, ""]:
    """Of what is missed."""
    features, targets = part
    return 0.5 * jnp.mean((features @ coefficients.ravel() - targets) ** 2)


def problem(data: Samples) -> Problem:
    """Outer variables (groups,), inner ones (groups, width)."""

    def rows(radii: Array, coefficients: Array) -> Array:
        return jnp.sqrt(jnp.sum(coefficients**2, axis=1) + SMOOTHED**2) - SMOOTHED - radii

    def project(radii: Array, coefficients: Array) -> tuple[Array, Array]:
        both = jax.vmap(second_order_cone)(jnp.concatenate([coefficients, radii[:, None]], axis=1))
        return both[:, -1], both[:, :-1]

    return Problem(
        lambda radii, coefficients: half_mean_square(data.validation, coefficients),
        lambda radii, coefficients: half_mean_square(data.training, coefficients),
        inequality=rows,
        project_joint=project,
    )


def exact(data: Samples, radii: Float[Array, " groups"], start: Float[Array, "groups width"]) -> Array:
    """The inner solution, by Nesterov's method with projections on the balls and restarts, until steps are below 1e-5.

    Restarts are those of O'Donoghue and Candès (2015), where a step points back.
    """
    largest = _curvature(data)

    def step(carry: tuple) -> tuple:
        now, ahead, momentum, _, count = carry
        moved = _descended(data, radii, ahead, largest)
        back = jnp.sum((ahead - moved) * (moved - now)) > 0
        momentum = jnp.where(back, 1.0, momentum)
        after = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        further = jnp.where(back, moved, moved + (momentum - 1) / after * (moved - now))
        return moved, further, after, jnp.abs(moved - ahead).max(), count + 1

    def unfinished(carry: tuple) -> Array:
        return (carry[3] > 1e-5) & (carry[4] < 5000)

    return jax.lax.while_loop(unfinished, step, (start, start, jnp.float32(1), jnp.float32(jnp.inf), 0))[0]


def compare(given: GroupLasso, data: Samples, key: Key[Array, ""]) -> Compared:
    """All ways of choosing radii, on one set of data."""
    zeros, start = jnp.zeros((given.groups, given.width)), jnp.ones(given.groups)

    def measured(radii: Array) -> Array:
        coefficients = exact(data, radii, zeros)
        return jnp.stack([half_mean_square(part, coefficients) for part in (data.validation, data.test)])

    def best(candidates: Array) -> tuple[Array, Array]:
        found = jax.lax.map(measured, candidates)
        index = jnp.argmin(jnp.nan_to_num(found[:, 0], nan=jnp.inf))
        return found[index], candidates[index]

    def learned(settings: Array) -> Array:
        step, penalty = settings
        schedule, proximity = growing_penalty(penalty, 0.3), Proximity(PROXIMITY, PROXIMITY)
        method = LVHBA(step, SADDLE_STEP, SADDLE_STEP, schedule, proximity)
        return solve(
            problem(data), method, start, exact(data, start, zeros), steps=given.steps, record_every=given.steps
        ).state.outer

    tried = jnp.array([(step, penalty) for step in STEPS for penalty in PENALTIES])
    by_method, radii = best(jax.lax.map(learned, tried))
    low, high = np.log(RADII)
    grid = jnp.exp(jnp.linspace(low, high, given.tries))[:, None] * start
    drawn = jnp.exp(jax.random.uniform(key, (given.tries, given.groups), minval=low, maxval=high))
    return Compared(
        by_method,
        best(grid)[0],
        best(drawn)[0],
        measured(_by_hypergradients(given, data)),
        jnp.linalg.norm(radii - start),
    )


def _by_hypergradients(given: GroupLasso, data: Samples) -> Float[Array, " groups"]:
    """Radii after Adam's steps on their logarithms, from 1, with the implicit derivative of the projected gradient."""
    largest, optimiser = _curvature(data), optax.adam(0.05)

    def map(coefficients: Array, radii: Array) -> Array:
        return _descended(data, radii, coefficients, largest)

    inner = implicit.fixed_point(map, lambda init, radii: exact(data, radii, init), check=None)

    def outer(logarithms: Array, init: Array) -> tuple[Array, Array]:
        coefficients = inner(init, jnp.exp(logarithms)).value
        return half_mean_square(data.validation, coefficients), coefficients

    def step(carry: tuple, _: Any) -> tuple[tuple, None]:
        logarithms, state, init = carry
        slope, coefficients = jax.grad(outer, has_aux=True)(logarithms, init)
        updates, state = optimiser.update(slope, state)
        return (optax.apply_updates(logarithms, updates), state, coefficients), None

    zeros = jnp.zeros(given.groups)
    start = (zeros, optimiser.init(zeros), jnp.zeros((given.groups, given.width)))
    return jnp.exp(jax.lax.scan(step, start, None, length=given.outer_steps)[0][0])


def _curvature(data: Samples) -> Float[Array, ""]:
    features = data.training[0]
    return jnp.linalg.eigvalsh(features @ features.T / len(features))[-1]


def _descended(data: Samples, radii: Array, coefficients: Array, largest: Array) -> Array:
    """A projected gradient step of the inner objective."""
    moved = coefficients - jax.grad(lambda each: half_mean_square(data.training, each))(coefficients) / largest
    norms = jax.vmap(lambda group: optax.safe_norm(group, 1e-6))(moved)
    return moved * jnp.minimum(1, radii / norms)[:, None]
