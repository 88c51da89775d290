"""Prompts for in-context regression against the moments of the distribution that they are said to come from."""

from dataclasses import asdict
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.data.linear_prompts import LinearPrompts, Prompt, prompt_tokens, sample_prompts

PROMPTS, LENGTH = 8192, 24
TASKS = ((0, 3), (1, 5), (2, 3))
ISOTROPIC = LinearPrompts(5, LENGTH, 0.5, 0.0, TASKS)
NOISELESS = LinearPrompts(5, LENGTH, 0.0, 0.6, TASKS)
NOISY = LinearPrompts(5, LENGTH, 2.0, -0.5, TASKS)
WORLDS = pytest.mark.parametrize("world", [ISOTROPIC, NOISELESS, NOISY], ids=["isotropic", "noiseless", "noisy"])


@cache
def prompts(world: LinearPrompts) -> SimpleNamespace:
    """Many prompts, in float64 so that sums over them are exact."""
    sampled = jax.jit(lambda key: sample_prompts(world, PROMPTS, key))(jax.random.key(0))
    return SimpleNamespace(**{name: np.asarray(part, np.float64) for name, part in asdict(sampled).items()})


def near(values: np.ndarray, theory: np.ndarray | float) -> None:
    """The mean over prompts is the theory's to within five standard errors, and those are small."""
    error = values.std(axis=0) / len(values) ** 0.5
    assert (error < 0.05 * np.maximum(np.abs(theory), 1)).all()
    assert (np.abs(values.mean(axis=0) - theory) < 5 * error + 1e-12).all()


def reads(first: int, past: int) -> np.ndarray:
    return np.isin(np.arange(5), np.arange(first, past))


def least_squares(prompt: SimpleNamespace, read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each prompt's labels on these covariates: coefficients (prompt, covariate, task) and residuals."""
    covariates = prompt.covariates[:, :, read]
    gram = np.einsum("pli,plj->pij", covariates, covariates)
    fitted = np.linalg.solve(gram, np.einsum("pli,plt->pit", covariates, prompt.labels))
    return fitted, prompt.labels - np.einsum("pli,pit->plt", covariates, fitted)


@WORLDS
def test_covariates_have_the_covariance_asked_for(world: LinearPrompts) -> None:
    correlation = world.covariate_correlation
    expected = np.array([[1.0 if i == j else correlation ** abs(i - j) for j in range(5)] for i in range(5)])
    np.testing.assert_allclose(world.covariance, expected, rtol=1e-6)
    prompt = prompts(world)
    near(np.einsum("pli,plj->pij", prompt.covariates, prompt.covariates) / LENGTH, expected)
    near(np.einsum("pi,pj->pij", prompt.query, prompt.query), expected)
    near(prompt.covariates.mean(axis=1), 0.0)
    near(prompt.query, 0.0)
    # The examples of a prompt and its query are drawn apart from one another.
    near(np.einsum("pi,pj->pij", prompt.covariates[:, 0], prompt.covariates[:, 1]), 0.0)
    near(np.einsum("pi,pj->pij", prompt.covariates[:, -1], prompt.query), 0.0)


@WORLDS
def test_labels_have_the_variance_of_signal_and_noise(world: LinearPrompts) -> None:
    prompt = prompts(world)
    # tr(Σ)/k = 1 whatever the correlation, as every covariate has variance 1.
    near((prompt.labels**2).mean(axis=1), 1 + world.noise_variance)
    near(prompt.target**2, 1 + world.noise_variance)
    near(prompt.target, 0.0)


def test_a_task_reads_its_own_covariates_and_has_weights_of_its_own() -> None:
    prompt = prompts(NOISELESS)
    weights, residuals = least_squares(prompt, reads(0, 5))  # without noise these are the tasks' own weights
    assert np.abs(residuals).max() < 1e-4
    for task, (first, past) in enumerate(TASKS):
        read = reads(first, past)
        assert np.abs(weights[:, ~read, task]).max() < 1e-4
        near(weights[:, read, task], 0.0)
        second = np.einsum("pi,pj->pij", weights[:, read, task], weights[:, read, task])
        near(second, np.eye(past - first) / (past - first))
    near(weights[:, 2, 0] * weights[:, 2, 1], 0.0)  # covariate 2 is read by all
    near(weights[:, 2, 1] * weights[:, 2, 2], 0.0)
    # The query's labels are by the same weights.
    np.testing.assert_allclose(prompt.target, np.einsum("pi,pit->pt", prompt.query, weights), atol=1e-4)


def test_labels_do_not_correlate_with_covariates_that_their_task_does_not_read() -> None:
    prompt = prompts(ISOTROPIC)
    products = np.einsum("pli,plt->pit", prompt.covariates, prompt.labels) / LENGTH
    near(products, 0.0)  # the weights' mean is 0
    for task, (first, past) in enumerate(TASKS):
        read, variance = reads(first, past), 1 + ISOTROPIC.noise_variance
        # E (Σ_l x_l y_l / L)² is the variance of L products where nothing is read, and E β² = 1/k more where it is.
        near(products[:, ~read, task] ** 2, variance / LENGTH)
        near(products[:, read, task] ** 2, 1 / (past - first) + (variance + 1 / (past - first)) / LENGTH)


@pytest.mark.parametrize("world", [ISOTROPIC, NOISY], ids=["isotropic", "noisy"])
def test_noise_has_the_variance_asked_for_and_is_in_the_target_too(world: LinearPrompts) -> None:
    prompt, all_residuals = prompts(world), []
    for task, (first, past) in enumerate(TASKS):
        read, width = reads(first, past), past - first
        fitted, residuals = least_squares(prompt, read)
        near((residuals[:, :, task] ** 2).sum(axis=1) / (LENGTH - width) / world.noise_variance, 1.0)
        missed = prompt.target[:, task] - np.einsum("pi,pi->p", prompt.query[:, read], fitted[:, :, task])
        # E x (XᵀX)⁻¹ xᵀ = k/(L - k - 1), an inverse Wishart's mean.
        near(missed**2 / world.noise_variance, 1 + width / (LENGTH - width - 1))
        all_residuals.append(residuals[:, :, task])
    for one, other in ((0, 1), (0, 2), (1, 2)):  # each label has noise of its own
        near((all_residuals[one] * all_residuals[other]).mean(axis=1) / world.noise_variance, 0.0)


def test_noise_is_drawn_apart_from_the_covariates() -> None:
    prompt = prompts(LinearPrompts(1, 2, 1.0, 0.0, ((0, 1),)))  # as many numbers of either
    near(prompt.covariates * prompt.labels, 0.0)
    near(prompt.query * prompt.target, 0.0)


def test_fresh_for_every_key_and_prompt_and_the_same_for_the_same_key() -> None:
    world = LinearPrompts(3, 4, 0.1, 0.2, ((0, 3), (0, 1)))
    draw = jax.jit(lambda key: sample_prompts(world, 5, key))
    first, again, other = (jax.tree.leaves(draw(jax.random.key(seed))) for seed in (0, 0, 1))
    assert [leaf.shape for leaf in first] == [(5, 4, 3), (5, 4, 2), (5, 3), (5, 2)]
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert (np.asarray(one) != np.asarray(different)).all()
        assert len(np.unique(one)) == one.size  # no two numbers of a batch are the same


def test_tokens_are_covariates_and_labels_and_the_querys_labels_are_zero() -> None:
    rng = np.random.default_rng(0)
    prompt = Prompt(*(jnp.float32(rng.normal(size=shape)) for shape in ((2, 4, 3), (2, 4, 2), (2, 3), (2, 2))))
    tokens, query = prompt_tokens(prompt)
    assert tokens.shape == (2, 4, 5)
    assert query.shape == (2, 1, 5)
    np.testing.assert_array_equal(tokens[..., :3], prompt.covariates)
    np.testing.assert_array_equal(tokens[..., 3:], prompt.labels)
    np.testing.assert_array_equal(query[:, 0, :3], prompt.query)
    np.testing.assert_array_equal(query[:, 0, 3:], jnp.zeros((2, 2)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dimension", 0, "dimension must be at least 1; got 0"),
        ("context_length", 0, "context_length must be at least 1; got 0"),
        ("noise_variance", -0.1, "noise_variance must not be negative; got -0.1"),
        ("noise_variance", float("nan"), "noise_variance must not be negative; got nan"),
        ("covariate_correlation", 1.0, "covariate_correlation must be between -1 and 1; got 1.0"),
        ("covariate_correlation", -1.0, "covariate_correlation must be between -1 and 1; got -1.0"),
        ("task_features", (), "task_features must name at least one task"),
        ("task_features", ((0, 4),), r"task_features must be ranges within 0 to dimension = 3; got \(0, 4\)"),
        ("task_features", ((0, 3), (2, 2)), r"task_features must be ranges .* got \(2, 2\)"),
        ("task_features", ((-1, 2),), r"task_features must be ranges .* got \(-1, 2\)"),
    ],
)
def test_worlds_that_cannot_be(field: str, value: object, message: str) -> None:
    possible = {
        "dimension": 3,
        "context_length": 4,
        "noise_variance": 0.1,
        "covariate_correlation": 0.0,
        "task_features": ((0, 3),),
    }
    LinearPrompts(**possible)
    with pytest.raises(ValueError, match=message):
        LinearPrompts(**(possible | {field: value}))
