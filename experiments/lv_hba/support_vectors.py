"""Slack weights of a support vector machine, learned on other samples: ½‖w‖² + ½ Σ exp(C_i) ξ_i² with margins 1 - ξ_i.

Outer variables are what is added to the C_i they start from, over `stretch`. Inner ones are weights, with an intercept
at their end, and slack. With turned labels among the training samples this is data hyper-cleaning.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key
from sklearn.datasets import load_breast_cancer

from experiments.lv_hba.config import Machine
from jattn.bilevel import LVHBA, Problem, Proximity, advance, at_inner_solution, growing_penalty, onto_margins
from jattn.data.images import digits

LOWEST, HIGHEST = -8.0, -1.0
"""Of C_i."""
RECORDS = 20
COMMON = tuple(np.linspace(LOWEST, HIGHEST, 29).tolist())
"""C_i that are tried where they are the same for all samples."""


class Split(NamedTuple):
    """Rows are features and a 1, times the label of ±1.

    Attributes:
      start: C_i at first.
      corrupted: which training labels are turned.
    """

    training: Float[Array, "training size"]
    validation: Float[Array, "validation size"]
    test: Float[Array, "test size"]
    start: Float[Array, " training"]
    corrupted: Bool[Array, " training"]


class Learned(NamedTuple):
    """By record, the first of them the start.

    Attributes:
      exact: validation loss at the exact inner solution.
      own: validation loss at the method's own inner variables.
      test_error: share of wrong labels at the exact inner solution.
      moved: ‖C - start‖.
      violation: of the margins.
      costs: the last C_i.
    """

    exact: Float[Array, " records"]
    own: Float[Array, " records"]
    test_error: Float[Array, " records"]
    moved: Float[Array, " records"]
    violation: Float[Array, " records"]
    costs: Float[Array, " training"]


class Baselines(NamedTuple):
    """Validation loss and share of wrong labels among test samples, at exact inner solutions.

    Attributes:
      shuffled: of the learned C_i, given to the samples in random order.
      common: of one C for all samples, which has the least validation loss of `COMMON`.
      without_corrupted: of that C, and corrupted samples left out.
    """

    shuffled: Float[Array, "2"]
    common: Float[Array, "2"]
    without_corrupted: Float[Array, "2"]


def split(given: Machine, seed: tuple[int, ...]) -> Split:
    """Samples at random; features standardised by the training samples alone."""
    generator = np.random.default_rng(seed)
    if given.data == "digits":
        images = digits()
        # The corners of the pictures are always empty: 1e-3 keeps their scale.
        features, targets, least = images.images.reshape(len(images.labels), -1), images.labels % 2, 1e-3
    else:
        found: Any = load_breast_cancer()
        features, targets, least = found.data, found.target, 0.0
    order = generator.permutation(len(targets))
    features, labels = features[order], 2.0 * targets[order] - 1
    known = features[: given.training]
    features = (features - known.mean(axis=0)) / np.maximum(known.std(axis=0), least)
    rows = np.concatenate([features, np.ones((len(labels), 1))], axis=1) / np.sqrt(features.shape[1] + 1)
    start = jnp.asarray(generator.uniform(-6, -5, given.training), jnp.float32)
    corrupted = np.zeros(len(labels), bool)
    corrupted[generator.permutation(given.training)[: round(given.corrupted * given.training)]] = True
    rows = jnp.asarray(rows * np.where(corrupted, -labels, labels)[:, None], jnp.float32)
    ends = given.training, given.training + given.validation
    turned = jnp.asarray(corrupted[: ends[0]])
    return Split(rows[: ends[0]], rows[ends[0] : ends[1]], rows[ends[1] :], start, turned)


def validation_loss(data: Split, weights: Float[Array, " size"]) -> Float[Array, ""]:
    """The mean of leaky_relu(2 sigmoid(-5 margin / ‖w‖) - 1)."""
    margins = data.validation @ weights / jnp.linalg.norm(weights.at[-1].set(0))
    return jnp.mean(jax.nn.leaky_relu(2 * jax.nn.sigmoid(-5 * margins) - 1))


def problem(data: Split, stretch: float, weight: float = 1.0) -> Problem:
    """Args: weight: of the outer objective."""
    counted = jnp.ones(data.training.shape[1]).at[-1].set(0)  # the intercept is not in ‖w‖

    def outer(change: Array, inner: dict[str, Array]) -> Array:
        return weight * validation_loss(data, inner["weights"])

    def objective(change: Array, inner: dict[str, Array]) -> Array:
        slack = jnp.exp(data.start + stretch * change) * inner["slack"] ** 2
        return 0.5 * jnp.sum((counted * inner["weights"]) ** 2) + 0.5 * slack.sum()

    def project(change: Array, inner: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        weights, slack = onto_margins(data.training, inner["weights"], inner["slack"])
        limited = (jnp.clip(data.start + stretch * change, LOWEST, HIGHEST) - data.start) / stretch
        return limited, {"weights": weights, "slack": slack}

    return Problem(
        outer,
        objective,
        inequality=lambda _, inner: 1 - inner["slack"] - data.training @ inner["weights"],
        project_joint=project,
    )


def exact(data: Split, costs: Float[Array, " training"]) -> dict[str, Array]:
    """The inner solution, by Newton's method on the squared hinge that is left without slack."""
    counted = jnp.ones(data.training.shape[1]).at[-1].set(0)

    def newton(_: Any, weights: Array) -> Array:
        misses = 1 - data.training @ weights
        active = (misses > 0) * jnp.exp(costs)
        hessian = jnp.diag(counted + 1e-6) + (data.training * active[:, None]).T @ data.training
        return weights - jnp.linalg.solve(hessian, counted * weights - data.training.T @ (active * misses))

    weights = jax.lax.fori_loop(0, 30, newton, jnp.zeros(data.training.shape[1]))
    return {"weights": weights, "slack": jnp.maximum(1 - data.training @ weights, 0)}


def learn(data: Split, penalty: float | Float[Array, ""], steps: int, stretch: float, weight: float = 1.0) -> Learned:
    """LV-HBA from the exact inner solution and its multipliers exp(C) ξ.

    Args:
      penalty: at the start; it grows slowly.
      weight: of the outer objective where the method sees it; it is always measured whole. At 0 nothing but the inner
        problem's value function could move outer variables, which ought not to.
    """
    whole, seen = problem(data, stretch), problem(data, stretch, weight)
    method = LVHBA(0.02, 0.02, 0.03, growing_penalty(penalty, 0.1), Proximity(1.0, 1.0))
    change, inner = jnp.zeros_like(data.start), exact(data, data.start)
    state = method.init(seen, change, inner, jax.random.key(0))
    # Multipliers are those of rows divided by their norms.
    multipliers = {"inequality": jnp.exp(data.start) * inner["slack"] * state.row_norms["inequality"]}
    state = replace(state, memory=state.memory | {"multipliers": multipliers, "centers": multipliers})
    records, _ = advance(seen, method, state, steps=steps, record_every=steps // RECORDS)

    def measure(change: Array, inner: dict[str, Array]) -> tuple[Array, ...]:
        costs = data.start + stretch * change
        found = at_inner_solution(whole, lambda _: exact(data, costs), change, inner)
        moved = stretch * jnp.linalg.norm(change)
        wrong, violation = _measured(data, costs)[1], whole.violation(change, inner)
        return found.hyper_objective, found.outer_objective, wrong, moved, violation

    first = measure(change, inner)
    later = jax.vmap(measure)(records.outer, records.inner)
    by_record = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, later)
    return Learned(*by_record, costs=data.start + stretch * records.outer[-1])


def baselines(data: Split, costs: Float[Array, " training"], key: Key[Array, ""]) -> Baselines:
    """What these C_i are held against."""
    constant = jnp.asarray(COMMON)[:, None] * jnp.ones_like(data.start)
    common = jax.lax.map(lambda costs: _measured(data, costs), constant)
    best = jnp.argmin(common[:, 0])
    known = _measured(data, jnp.where(data.corrupted, -jnp.inf, constant[best]))
    return Baselines(_measured(data, jax.random.permutation(key, costs)), common[best], known)


def _measured(data: Split, costs: Float[Array, " training"]) -> Float[Array, "2"]:
    """Validation loss, and the share of wrong labels among test samples."""
    weights = exact(data, costs)["weights"]
    return jnp.stack([validation_loss(data, weights), jnp.mean(data.test @ weights < 0)])
