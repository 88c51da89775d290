"""A support vector machine's slack weights by LV-HBA, slack eliminated from the projection, on breast-cancer data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from jattn.bilevel import LVHBA, Problem, Proximity, advance, at_inner_solution, growing_penalty, onto_margins

TRAINING, VALIDATION, STRETCH = 300, 130, 30.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_slack_weights_are_learned(seed: int) -> None:
    """½‖w‖² + ½ Σ exp(C_i) ξ_i² is least subject to margins of 1 - ξ_i; C is learned on other samples' sigmoid loss.

    Measured at exact inner solutions, by Newton's method on the squared hinge that is left without ξ. Outer variables
    are C's changes divided by STRETCH, so that they move further.
    """
    generator = np.random.default_rng(seed)
    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    order = generator.permutation(len(labels))
    rows = np.concatenate([features, np.ones((len(labels), 1))], 1) / np.sqrt(features.shape[1] + 1)
    rows = jnp.asarray((rows * (2 * labels[:, None] - 1))[order], jnp.float32)
    training, validation, test = rows[:TRAINING], rows[TRAINING : TRAINING + VALIDATION], rows[TRAINING + VALIDATION :]
    start = jnp.asarray(generator.uniform(-6, -5, TRAINING), jnp.float32)
    counted = jnp.ones(rows.shape[1]).at[-1].set(0)  # the intercept is not

    def outer(change: jax.Array, inner: dict[str, jax.Array]) -> jax.Array:
        margins = validation @ inner["weights"] / jnp.linalg.norm(counted * inner["weights"])
        return jnp.mean(jax.nn.leaky_relu(2 * jax.nn.sigmoid(-5 * margins) - 1))

    def inner(change: jax.Array, inner: dict[str, jax.Array]) -> jax.Array:
        slack = jnp.exp(start + STRETCH * change) * inner["slack"] ** 2
        return 0.5 * jnp.sum((counted * inner["weights"]) ** 2) + 0.5 * slack.sum()

    def project(change: jax.Array, inner: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        weights, slack = onto_margins(training, inner["weights"], inner["slack"])
        limited = jnp.clip(start + STRETCH * change, -8, -1)
        return (limited - start) / STRETCH, {"weights": weights, "slack": slack}

    def exact(change: jax.Array) -> dict[str, jax.Array]:
        def newton(_: int, weights: jax.Array) -> jax.Array:
            misses = 1 - training @ weights
            active = (misses > 0) * jnp.exp(start + STRETCH * change)
            hessian = jnp.diag(counted + 1e-6) + (training * active[:, None]).T @ training
            return weights - jnp.linalg.solve(hessian, counted * weights - training.T @ (active * misses))

        weights = jax.lax.fori_loop(0, 30, newton, jnp.zeros(rows.shape[1]))
        return {"weights": weights, "slack": jnp.maximum(1 - training @ weights, 0)}

    problem = Problem(
        outer,
        inner,
        inequality=lambda _, inner: 1 - inner["slack"] - training @ inner["weights"],
        project_joint=project,
    )
    method = LVHBA(0.02, 0.02, 0.03, growing_penalty(10.0, 0.1), Proximity(1.0, 1.0))
    change = jnp.zeros(TRAINING)
    state = method.init(problem, change, exact(change), jax.random.key(0))
    # The inner solution's multipliers exp(C) ξ, of rows that are divided by their norms.
    multipliers = {"inequality": jnp.exp(start) * state.inner["slack"] * state.row_norms["inequality"]}
    state = state.replace(memory=state.memory | {"multipliers": multipliers, "centers": multipliers})
    records, _ = advance(problem, method, state, steps=4000, record_every=500)  # warns of steps that are too long
    measured = jax.vmap(lambda x, y: at_inner_solution(problem, exact, x, y))(records.outer, records.inner)

    def errors(change: jax.Array) -> float:
        return float(jnp.mean(test @ exact(change)["weights"] < 0))

    before = at_inner_solution(problem, exact, change, exact(change)).hyper_objective
    assert STRETCH * jnp.linalg.norm(records.outer[-1]) > 1
    assert (jnp.diff(measured.hyper_objective) < 0).all()
    assert measured.hyper_objective[-1] < 0.6 * before
    assert jnp.abs(measured.hyper_objective - measured.outer_objective).max() < 0.2 * before
    assert errors(records.outer[-1]) < errors(change)
    assert records.violation.max() < 1e-5
