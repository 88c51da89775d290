"""What is measured on a trained model: errors, agreement with the closed forms, and the circuits in two numbers."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.in_context_regression import predictors, theory
from experiments.in_context_regression.config import CHUNK, Config
from experiments.in_context_regression.model import Regressors
from jattn.data.linear_prompts import Prompt, sample_prompts
from jattn.train import Fitted

AGREEMENT_CHUNKS = 20

PerSeed = Float[np.ndarray, " seeds"]


def test_keys(config: Config, stream: int) -> Key[Array, " seeds"]:
    """A key for every seed, apart from training's and from other streams'."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1000 + stream), config.seeds)


def errors_by_length(fitted: Fitted, config: Config) -> dict[int, dict[str, PerSeed]]:
    """Mean squared error, with the query's noise, of every arm and baseline at every test length.

    Each seed draws its own prompts and answers them by every method, so methods are compared on the same prompts.
    The baselines' rates are those that are best at the training length.
    """
    return {
        length: _host(fitted.map(partial(_errors, config, length), test_keys(config, stream)))
        for stream, length in enumerate(dict.fromkeys((*config.test_lengths, config.context_length)))
    }


def _errors(config: Config, length: int, model: Regressors, key: Key[Array, ""]) -> dict[str, Array]:
    world = config.world(length)

    def chunk(key: Key[Array, ""]) -> dict[str, Array]:
        prompt = sample_prompts(world, CHUNK, key)
        answers = {**model(prompt), **_baselines(config, length, prompt)}
        return {name: jnp.mean((answer - prompt.target) ** 2) for name, answer in answers.items()}

    return jax.tree.map(jnp.mean, jax.lax.map(chunk, jax.random.split(key, config.test_prompts // CHUNK)))


def _baselines(config: Config, length: int, prompt: Prompt) -> dict[str, Array]:
    trained_at = config.world(config.context_length)
    noise = (config.dimension + 1 + config.noise_variance * config.dimension) / config.context_length
    return {
        "constant": predictors.constant(prompt),
        "gradient descent": predictors.gradient_descent(prompt, 1 / (1 + noise)),
        "debiased gradient descent": predictors.debiased_gradient_descent(prompt, _isotropic_step(config)),
        "preconditioned": predictors.debiased_gradient_descent(prompt, theory.best_preconditioner(trained_at)),
        "Bayes": predictors.bayes(prompt, config.world(length)),
    }


def _isotropic_step(config: Config) -> Float[Array, "dimension dimension"]:
    return theory.best_rate(config.world(config.context_length)) * jnp.eye(config.dimension)


@dataclass(frozen=True)
class Agreement:
    """Correlation over fresh prompts of each arm's output with the closed forms', one number a seed.

    Attributes:
      debiased, plain, preconditioned: on prompts as they are.
      shuffled: with debiased gradient descent on the same prompt before its labels were shuffled.
      debiased_offset, plain_offset: when every label of the context has 1 added.
      debiased_centred, plain_centred: when the context's labels are centred, so that both forms are one.
      head_pair: with Σ_h μ_h Σ_l softmax(ω_h Xᵀx_q)_l y_l, (ω, μ) read off the circuits.
    """

    debiased: dict[str, PerSeed]
    plain: dict[str, PerSeed]
    preconditioned: dict[str, PerSeed]
    shuffled: dict[str, PerSeed]
    debiased_offset: dict[str, PerSeed]
    plain_offset: dict[str, PerSeed]
    debiased_centred: dict[str, PerSeed]
    plain_centred: dict[str, PerSeed]
    head_pair: dict[str, PerSeed]


def agreement(fitted: Fitted, config: Config) -> Agreement:
    """Measure how far each arm computes what the closed forms compute, at the training length."""
    keys = test_keys(config, 100)
    return Agreement(**{name: _host(values) for name, values in fitted.map(partial(_agreement, config), keys).items()})


def _agreement(config: Config, model: Regressors, key: Key[Array, ""]) -> dict[str, dict[str, Array]]:
    world = config.world(config.context_length)
    shuffle_key, key = jax.random.split(key)
    prompts = jax.lax.map(partial(sample_prompts, world, CHUNK), jax.random.split(key, AGREEMENT_CHUNKS))
    prompt = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), prompts)
    mean = prompt.labels.mean(axis=1, keepdims=True)
    order = jax.random.permutation(shuffle_key, config.context_length)
    offset, centred = replace(prompt, labels=prompt.labels + 1), replace(prompt, labels=prompt.labels - mean)
    shuffled = replace(prompt, labels=prompt.labels[:, order])
    step = _isotropic_step(config)
    preconditioner = theory.best_preconditioner(world)

    def with_debiased(given: Prompt, compared: Prompt) -> dict[str, Array]:
        return _correlations(model(given), predictors.debiased_gradient_descent(compared, step))

    def with_plain(given: Prompt) -> dict[str, Array]:
        return _correlations(model(given), predictors.gradient_descent(given, 1.0))

    answers = model(prompt)
    pairs = {name: strengths(*circuits) for name, circuits in model.circuits().items()}
    return {
        "debiased": with_debiased(prompt, prompt),
        "plain": with_plain(prompt),
        "preconditioned": _correlations(answers, predictors.debiased_gradient_descent(prompt, preconditioner)),
        "shuffled": with_debiased(shuffled, prompt),
        "debiased_offset": with_debiased(offset, offset),
        "plain_offset": with_plain(offset),
        "debiased_centred": with_debiased(centred, centred),
        "plain_centred": with_plain(centred),
        "head_pair": {
            name: _correlation(answers[name], predictors.head_pair(prompt, *pair)) for name, pair in pairs.items()
        },
    }


def _correlations(answers: dict[str, Array], reference: Array) -> dict[str, Array]:
    return {name: _correlation(answer, reference) for name, answer in answers.items()}


def _correlation(one: Array, other: Array) -> Array:
    return jnp.corrcoef(one.ravel(), other.ravel())[0, 1]


def strengths(
    key_query: Float[Array | np.ndarray, "*any heads width width"],
    output_value: Float[Array | np.ndarray, "*any heads outputs width"],
) -> tuple[Float[Array, "*any heads"], Float[Array, "*any heads"]]:
    """(ω, μ) of every head of a one-task model: the mean of the key-query circuit's covariate diagonal, and how
    much of the label the output-value circuit passes on."""
    dimension = key_query.shape[-1] - output_value.shape[-2]
    omega = jnp.trace(jnp.asarray(key_query)[..., :dimension, :dimension], axis1=-2, axis2=-1) / dimension
    return omega, jnp.asarray(output_value)[..., 0, -1]


@dataclass(frozen=True)
class Pattern:
    """How far one arm's circuits have the paper's pattern; one number a seed, the worst head counting.

    Attributes:
      off_diagonal: largest |entry| off the key-query diagonal that a query can reach, over |ω|.
      diagonal_spread: standard deviation along the diagonal, over |ω|.
      last_entry: |label entry| of the output-value circuit over the norm of its row.
      zero_sum: |Σμ| / Σ|μ|.
      signs_agree: share of Σ|μω| on heads with sign(ω) = sign(μ).
      rate: Σμω, the implied gradient-descent rate.
      omega, mu: of every head.
    """

    off_diagonal: PerSeed
    diagonal_spread: PerSeed
    last_entry: PerSeed
    zero_sum: PerSeed
    signs_agree: PerSeed
    rate: PerSeed
    omega: Float[np.ndarray, "seeds heads"]
    mu: Float[np.ndarray, "seeds heads"]


def pattern(
    key_query: Float[np.ndarray, "seeds heads width width"], output_value: Float[np.ndarray, "seeds heads 1 width"]
) -> Pattern:
    """The pattern of a one-task arm. The key-query column of the query's label is left out: that entry is zero."""
    dimension = key_query.shape[-1] - 1
    omega, mu = (np.asarray(array, np.float64) for array in strengths(key_query, output_value))
    reachable = np.abs(key_query[..., :dimension] * (1 - np.eye(dimension + 1, dimension)))
    diagonal = np.diagonal(key_query[..., :dimension, :dimension], axis1=-2, axis2=-1)
    products = mu * omega
    return Pattern(
        off_diagonal=(reachable.max(axis=(-2, -1)) / np.abs(omega)).max(axis=-1),
        diagonal_spread=(diagonal.std(axis=-1) / np.abs(omega)).max(axis=-1),
        last_entry=(np.abs(mu) / np.linalg.norm(output_value[..., 0, :], axis=-1)).min(axis=-1),
        zero_sum=np.abs(mu.sum(axis=-1)) / np.abs(mu).sum(axis=-1),
        signs_agree=np.maximum(products, 0).sum(axis=-1) / np.abs(products).sum(axis=-1),
        rate=products.sum(axis=-1),
        omega=omega,
        mu=mu,
    )


def _host(values: dict[str, Array]) -> dict[str, PerSeed]:
    return {name: np.asarray(value, np.float64) for name, value in values.items()}
