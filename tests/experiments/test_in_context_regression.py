"""The closed forms against independent ones, the measurements on circuits with known answers, and a whole run."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.integrate import solve_ivp
from sklearn.linear_model import LinearRegression, Ridge

from experiments.in_context_regression import EXPERIMENT, claims, predictors, real, theory
from experiments.in_context_regression.config import PRESETS, Config
from experiments.in_context_regression.measure import pattern
from experiments.in_context_regression.model import Regressors, squared_errors
from jattn.data.linear_prompts import LinearPrompts, Prompt, sample_prompts
from jattn.data.tables import diabetes
from jattn.runs import Claim, open_run

WORLD = LinearPrompts(5, 40, 0.1, 0.0, ((0, 5),))
README = Path(__file__).parents[2] / "README.md"


def prompts(world: LinearPrompts, count: int, seed: int = 0) -> Prompt:
    return jax.jit(lambda key: sample_prompts(world, count, key))(jax.random.key(seed))


def error(prediction: jax.Array, prompt: Prompt) -> float:
    return float(jnp.mean((prediction - prompt.target) ** 2))


def standard_error(prediction: jax.Array, prompt: Prompt) -> float:
    return float(jnp.std((prediction - prompt.target) ** 2) / len(prompt.target) ** 0.5)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 20.0])
def test_ridge_is_scikit_learns(penalty: float) -> None:
    prompt = prompts(WORLD, 8)
    ours = predictors.ridge(prompt, penalty)[:, 0]
    for row in range(8):
        model = LinearRegression(fit_intercept=False) if penalty == 0 else Ridge(penalty, fit_intercept=False)
        model.fit(np.float64(prompt.covariates[row]), np.float64(prompt.labels[row, :, 0]))
        np.testing.assert_allclose(ours[row], model.predict(np.float64(prompt.query[row : row + 1]))[0], rtol=2e-4)


def test_bayes_is_the_gaussian_posterior_mean_of_each_task() -> None:
    world = LinearPrompts(5, 12, 0.3, 0.4, ((0, 3), (1, 5)))
    prompt = prompts(world, 6)
    ours = np.asarray(predictors.bayes(prompt, world))
    for row in range(6):
        for task, (first, past) in enumerate(world.task_features):
            x = np.float64(prompt.covariates[row, :, first:past])
            query = np.float64(prompt.query[row, first:past])
            # The joint Gaussian of labels, conditioned: no normal equations.
            size = past - first
            joint = x @ x.T / size + world.noise_variance * np.eye(len(x))
            expected = query @ x.T / size @ np.linalg.solve(joint, np.float64(prompt.labels[row, :, task]))
            np.testing.assert_allclose(ours[row, task], expected, rtol=2e-3, atol=1e-4)


def test_debiased_step_ignores_an_offset_of_the_labels_and_the_plain_step_does_not() -> None:
    prompt = prompts(WORLD, 100)
    offset = replace(prompt, labels=prompt.labels + 3)
    debiased = [predictors.debiased_gradient_descent(p, jnp.eye(5)) for p in (prompt, offset)]
    plain = [predictors.gradient_descent(p, 1.0) for p in (prompt, offset)]
    np.testing.assert_allclose(*debiased, atol=1e-5)
    assert float(jnp.abs(plain[0] - plain[1]).max()) > 0.5


@pytest.mark.parametrize(("length", "paper"), [(10, 0.604), (20, 0.367), (40, 0.243), (100, 0.164)])
def test_head_pair_with_the_papers_strengths_has_the_papers_errors(length: int, paper: float) -> None:
    prompt = prompts(replace(WORLD, context_length=length), 30_000)
    prediction = predictors.head_pair(prompt, jnp.array([0.13, -0.13]), jnp.array([3.45, -3.45]))
    # The paper's own figures are means of 50,000 draws, so they carry about as much noise as these.
    assert abs(error(prediction, prompt) - paper) < 0.005 + 2 * standard_error(prediction, prompt)


def test_approximate_loss_is_near_monte_carlo_and_nearer_for_longer_prompts() -> None:
    strengths = jnp.float32(np.random.default_rng(0).uniform(0.05, 0.25, (8, 1)) * np.array([1, -1]))
    outputs = jnp.float32(np.random.default_rng(1).uniform(1.5, 3.5, (8, 1)) * np.array([1, -1]))
    relative = {}
    for length in (40, 160):
        world = replace(WORLD, context_length=length)
        prompt = prompts(world, 10_000)

        @jax.jit
        def off(pair: tuple[jax.Array, jax.Array], prompt: Prompt = prompt, world: LinearPrompts = world) -> jax.Array:
            measured = jnp.mean((predictors.head_pair(prompt, *pair) - prompt.target) ** 2)
            return jnp.abs(measured / theory.approximate_loss(*pair, world) - 1)

        relative[length] = np.mean([off(pair) for pair in zip(strengths, outputs, strict=True)])
    assert relative[40] < 0.1
    assert relative[160] < relative[40]


def test_valley_rate_minimises_the_approximate_loss_of_two_opposite_heads() -> None:
    for omega in (0.05, 0.2, 0.5):
        rates = np.linspace(0.5, 1, 2001)
        losses = [
            1.1 - 2 * r + r**2 * (1 + 1.1 * np.sinh(5 * omega**2) / (40 * omega**2)) for r in rates
        ]  # the two-head form of the loss, written out
        np.testing.assert_allclose(theory.valley_rate(jnp.float32(omega), WORLD), rates[np.argmin(losses)], atol=5e-4)
        mu = rates[0] / (2 * omega)
        general = theory.approximate_loss(jnp.array([omega, -omega]), jnp.array([mu, -mu]), WORLD)
        np.testing.assert_allclose(general, losses[0], rtol=1e-5)


def test_two_heads_of_one_sign_are_trapped() -> None:
    """At the best one-head solution shared by two heads, no direction goes down: the loss is flat along the sharing
    and curves up elsewhere."""

    def loss(at: jax.Array) -> jax.Array:
        return theory.approximate_loss(at[:2], at[2:], WORLD)

    landscape = jax.jit(lambda at: (loss(at), jax.grad(loss)(at), jax.hessian(loss)(at)))
    with jax.enable_x64(True):
        omega = 5**-0.5
        total = 5**0.5 / (1 + np.e * 1.1 * 5 / 40)
        for share in (0.5, 0.8):
            at = jnp.array([omega, omega, share * total, (1 - share) * total])

            value, slope, hessian = landscape(at)
            np.testing.assert_allclose(slope, 0, atol=1e-12)
            curvatures = np.linalg.eigvalsh(hessian)
            assert abs(curvatures[0]) < 1e-10
            assert curvatures[1] > 0.1
            assert landscape(jnp.array([0.15, -0.15, 2.9, -2.9]))[0] < value - 0.1


def test_best_preconditioner_beats_its_neighbours_and_is_the_best_rate_when_isotropic() -> None:
    world = replace(WORLD, covariate_correlation=0.6)
    best = theory.best_preconditioner(world)
    prompt = prompts(world, 50_000)
    least = error(predictors.debiased_gradient_descent(prompt, best), prompt)
    for other in (0.9 * best, 1.1 * best, jnp.trace(best) / 5 * jnp.eye(5)):
        assert least < error(predictors.debiased_gradient_descent(prompt, other), prompt)
    isotropic = theory.best_preconditioner(WORLD)
    np.testing.assert_allclose(isotropic, theory.best_rate(WORLD) * np.eye(5), atol=0.02)


def test_gradient_flow_is_the_papers_and_ends_in_the_valley() -> None:
    def slope(_: float, at: np.ndarray) -> np.ndarray:  # the paper's gradients, written out
        omega, mu = at[:2], at[2:]
        outer, noise = np.outer(omega, omega), 1.1 / 40
        along_mu = -2 * omega + 2 * (outer + noise * np.exp(5 * outer)) @ mu
        along_omega = -2 * mu + 2 * (mu @ omega) * mu + 2 * 5 * noise * (np.exp(5 * outer) * np.outer(mu, mu)) @ omega
        return -np.concatenate([along_omega, along_mu])

    start = np.array([0.3, -0.2, 0.3, -0.3])
    exact = solve_ivp(slope, (0, 100), start, rtol=1e-8, atol=1e-10).y[:, -1]
    omegas, mus = theory.gradient_flow(jnp.float32(start[:2]), jnp.float32(start[2:]), WORLD, time=100.0, points=30)
    np.testing.assert_allclose(np.concatenate([omegas[-1], mus[-1]]), exact, rtol=1e-3)
    losses = jax.vmap(lambda w, m: theory.approximate_loss(w, m, WORLD))(omegas, mus)
    assert (np.diff(losses) <= 1e-6).all()
    np.testing.assert_allclose(
        (omegas[-1] * mus[-1]).sum(), theory.valley_rate(jnp.abs(omegas[-1]).mean(), WORLD), rtol=0.01
    )


def planted(omega: list[float], mu: list[float], noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Circuits of one seed with given strengths."""
    generator = np.random.default_rng(0)
    key_query = generator.normal(size=(1, len(omega), 6, 6)) * noise
    output_value = generator.normal(size=(1, len(omega), 1, 6)) * noise
    key_query[0, :, range(5), range(5)] += np.array(omega)
    output_value[0, :, 0, 5] += mu
    return key_query, output_value


def test_pattern_reads_planted_strengths() -> None:
    exact = pattern(*planted([0.1, -0.1], [3.0, -3.0]))
    assert exact.off_diagonal[0] == exact.diagonal_spread[0] == exact.zero_sum[0] == 0
    assert exact.last_entry[0] == exact.signs_agree[0] == 1
    np.testing.assert_allclose(exact.rate, 0.6)
    spoiled = pattern(*planted([0.1, -0.1], [3.0, 2.0], noise=0.02))
    assert spoiled.off_diagonal[0] > 0.1
    assert spoiled.diagonal_spread[0] > 0.05
    assert spoiled.last_entry[0] < 1
    np.testing.assert_allclose(spoiled.zero_sum, 1, atol=0.02)
    np.testing.assert_allclose(spoiled.signs_agree, 0.3 / 0.5, atol=0.1)


def test_pattern_leaves_out_the_column_that_no_query_reaches() -> None:
    key_query, output_value = planted([0.1], [1.0])
    key_query[..., 5] = 100  # multiplied by the query's label entry, which is zero
    assert pattern(key_query, output_value).off_diagonal[0] == 0
    key_query[..., 5, 0] = 0.05  # a key's label answering the query does count
    np.testing.assert_allclose(pattern(key_query, output_value).off_diagonal, 0.5)


def test_task_shares_of_planted_heads() -> None:
    key_query = np.zeros((1, 2, 7, 7))
    key_query[0, :, range(5), range(5)] = 1.0
    output_value = np.zeros((1, 2, 2, 7))
    output_value[0, 0, 0, 5] = 2.0  # head 0 serves task 0 alone
    output_value[0, 1, 0, 5] = output_value[0, 1, 1, 6] = 1.0  # head 1 serves both
    strength, shares = claims.task_shares(key_query, output_value)
    np.testing.assert_allclose(shares[0], [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(strength[0, 0], strength[0, 1])


def test_a_fused_kernel_gives_the_same_errors() -> None:
    model = nnx.jit(lambda: Regressors(Config(), nnx.Rngs(0)))()
    prompt = prompts(WORLD, 256)
    plain = nnx.jit(squared_errors)(model, prompt)
    model.softmax.attention = jax.nn.dot_product_attention
    fused = nnx.jit(squared_errors)(model, prompt)
    for name in plain:
        np.testing.assert_allclose(fused[name], plain[name], rtol=1e-5)


def test_real_contexts_hold_training_rows_only_and_everything_is_fitted_on_those() -> None:
    config = replace(PRESETS["smoke"].config, real_splits=3)
    rows = len(diabetes().target) - real.TEST_ROWS
    whole = real.split_table(config, rows)  # the context is every training row
    np.testing.assert_allclose(whole.context.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(whole.context.std(axis=1, ddof=1), 1, atol=1e-3)
    np.testing.assert_allclose(whole.labels.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(whole.labels.std(axis=1), 1, atol=1e-4)
    assert float(jnp.abs(whole.query.mean(axis=1)).max()) > 0.01  # held-out rows took no part in it
    for split in range(3):
        context, query = np.asarray(whole.context[split]), np.asarray(whole.query[split])
        assert not (context[:, None] == query[None]).all(axis=-1).any()
    with pytest.raises(ValueError, match=rf"real_lengths must be at most {rows}"):
        real.split_table(config, rows + 1)


def test_wins_and_losses_need_an_interval_that_leaves_zero_out() -> None:
    noise = np.random.default_rng(0).normal(size=20)
    methods = {"arm": noise, "ridge": noise + 1, "ordinary least squares": noise - 1, "constant": -noise}
    rows = real.wins_and_losses({10: methods}, "arm")
    assert [row["verdict"] for row in rows] == ["wins", "loses", "undecided"]


@pytest.mark.parametrize(
    "fields",
    [
        {"heads": ()}, {"heads": (2, 2)}, {"learning_rate": 0.0}, {"test_prompts": 1500}, {"noise_variance": -1.0},
        {"task_features": ((0, 6),)}, {"evaluate_every": 75}, {"steps": 0}, {"seeds": 0}, {"real_lengths": (0,)},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused_by_name(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        replace(Config(), **fields)


TINY = replace(
    PRESETS["smoke"].config, steps=20, steps_per_dispatch=10, evaluate_every=10, checkpoint_every=20, batch_size=8,
    test_prompts=1000, test_lengths=(), real_lengths=(10,), linear_heads=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "settled"),
    [
        ({"heads": (1, 2, 4), "linear_heads": 2, "test_lengths": (10, 40)}, 18),
        ({"heads": (2,), "covariate_correlation": 0.5}, 2),
        ({"heads": (3, 4, 6), "task_features": ((0, 3), (1, 5))}, 3),
        ({"heads": (3,), "task_features": ((0, 3), (1, 5))}, 0),
    ],
)
def test_a_whole_run_settles_its_claims_and_none_holds_after_twenty_steps(
    tmp_path: Path, changes: dict, settled: int
) -> None:
    config = replace(TINY, **changes)
    with open_run(EXPERIMENT, "tiny", config, tmp_path / "run", quiet=True) as run:
        EXPERIMENT.run(config, run)
        assert len(run.verdicts) == settled
        assert not any(verdict.held for verdict in run.verdicts)
    made = {path.stem for path in (tmp_path / "run" / "figures").glob("*.svg")}
    assert {"loss", "length", "circuits"} <= made
    assert ("diabetes" in made) == (len(config.tasks) == 1)
    assert ("dynamics" in made) == (len(config.tasks) == 1 and 2 in config.heads)


def test_every_claim_stands_in_the_readme_with_its_bar() -> None:
    text = README.read_text().replace("\\|", "|")
    named = [value for value in vars(claims).values() if isinstance(value, Claim)]
    assert len(named) > 20
    for claim in named:
        rows = [line for line in text.splitlines() if line.startswith(f"| {claim.name}:")]
        assert rows, claim.name
        assert f"| {claim.bar} |" in rows[0]
