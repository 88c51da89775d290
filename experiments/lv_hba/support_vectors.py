"""Slack weights of a support vector machine, learned on other samples: ½‖w‖² + ½ Σ exp(C_i) ξ_i² with margins 1 - ξ_i.

Outer variables are what is added to the C_i they start from, over `stretch`. Inner ones are weights, with an intercept
at their end, and slack.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.datasets import load_breast_cancer

from experiments.lv_hba.config import Config
from jattn.bilevel import LVHBA, Problem, Proximity, advance, at_inner_solution, growing_penalty, onto_margins

LOWEST, HIGHEST = -8.0, -1.0
"""Of C_i."""
RECORDS = 20


class Split(NamedTuple):
    """Rows are features and a 1, times the label of ±1.

    Attributes:
      start: C_i at first.
    """

    training: Float[Array, "training size"]
    validation: Float[Array, "validation size"]
    test: Float[Array, "test size"]
    start: Float[Array, " training"]


class Learned(NamedTuple):
    """By record, the first of them the start.

    Attributes:
      exact: validation loss at the exact inner solution.
      own: validation loss at the method's own inner variables.
      test_error: share of wrong labels at the exact inner solution.
      moved: ‖C - start‖.
      violation: of the margins.
    """

    exact: Float[Array, " records"]
    own: Float[Array, " records"]
    test_error: Float[Array, " records"]
    moved: Float[Array, " records"]
    violation: Float[Array, " records"]


def split(config: Config, seed: int) -> Split:
    """Breast-cancer samples at random; features standardised by the training samples alone."""
    generator = np.random.default_rng((config.seed, seed))
    found: Any = load_breast_cancer()
    order = generator.permutation(len(found.target))
    features, labels = found.data[order], 2.0 * found.target[order] - 1
    known = features[: config.training]
    features = (features - known.mean(axis=0)) / known.std(axis=0)
    rows = np.concatenate([features, np.ones((len(labels), 1))], axis=1) / np.sqrt(features.shape[1] + 1)
    rows = jnp.asarray(rows * labels[:, None], jnp.float32)
    ends = config.training, config.training + config.validation
    start = jnp.asarray(generator.uniform(-6, -5, config.training), jnp.float32)
    return Split(rows[: ends[0]], rows[ends[0] : ends[1]], rows[ends[1] :], start)


def problem(data: Split, stretch: float, frozen: bool = False) -> Problem:
    """Args: frozen: the outer variables stay at the start, as in the code released with the paper."""
    counted = jnp.ones(data.training.shape[1]).at[-1].set(0)  # the intercept is not in ‖w‖

    def outer(change: Array, inner: dict[str, Array]) -> Array:
        margins = data.validation @ inner["weights"] / jnp.linalg.norm(counted * inner["weights"])
        return jnp.mean(jax.nn.leaky_relu(2 * jax.nn.sigmoid(-5 * margins) - 1))

    def objective(change: Array, inner: dict[str, Array]) -> Array:
        slack = jnp.exp(data.start + stretch * change) * inner["slack"] ** 2
        return 0.5 * jnp.sum((counted * inner["weights"]) ** 2) + 0.5 * slack.sum()

    def project(change: Array, inner: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        weights, slack = onto_margins(data.training, inner["weights"], inner["slack"])
        limited = (jnp.clip(data.start + stretch * change, LOWEST, HIGHEST) - data.start) / stretch
        return jnp.zeros_like(change) if frozen else limited, {"weights": weights, "slack": slack}

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


def learn(data: Split, steps: int, stretch: float, frozen: bool = False) -> Learned:
    """LV-HBA from the exact inner solution and its multipliers exp(C) ξ."""
    whole = problem(data, stretch, frozen)
    method = LVHBA(0.02, 0.02, 0.03, growing_penalty(10.0, 0.1), Proximity(1.0, 1.0))
    change, inner = jnp.zeros_like(data.start), exact(data, data.start)
    state = method.init(whole, change, inner, jax.random.key(0))
    # Multipliers are those of rows divided by their norms.
    multipliers = {"inequality": jnp.exp(data.start) * inner["slack"] * state.row_norms["inequality"]}
    state = replace(state, memory=state.memory | {"multipliers": multipliers, "centers": multipliers})
    records, _ = advance(whole, method, state, steps=steps, record_every=steps // RECORDS)

    def measure(change: Array, inner: dict[str, Array]) -> Learned:
        costs = data.start + stretch * change
        found = at_inner_solution(whole, lambda _: exact(data, costs), change, inner)
        wrong = jnp.mean(data.test @ exact(data, costs)["weights"] < 0)
        moved = stretch * jnp.linalg.norm(change)
        return Learned(found.hyper_objective, found.outer_objective, wrong, moved, whole.violation(change, inner))

    first = measure(change, inner)
    later = jax.vmap(measure)(records.outer, records.inner)
    return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, later)
