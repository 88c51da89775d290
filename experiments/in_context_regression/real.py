"""The trained models, unchanged, on real input: the diabetes table, one context of patients at a time.

Rows are split in two. Everything that is fitted before the context is fitted on training rows only: the
standardisation of the ten features, their reduction to the models' dimension by principal components (each scaled
to unit variance), and the standardisation of the target. A context is drawn from training rows; the queries are the
held-out rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.base import RegressorMixin
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.preprocessing import StandardScaler

from experiments.in_context_regression.config import Config
from experiments.in_context_regression.model import Regressors
from jattn.data.linear_prompts import Prompt
from jattn.data.tables import diabetes
from jattn.runs.claim import estimate
from jattn.train import Fitted

TEST_ROWS = 100


def real_prompts(config: Config, length: int) -> Prompt:
    """A context of `length` training rows and the test rows as queries, for every random split of the table.

    The arrays have a leading axis of splits. All queries of a split share its context.
    """
    table = diabetes()
    contexts, labels, queries, targets = [], [], [], []
    for split in range(config.real_splits):
        order = np.random.default_rng([config.seed, split]).permutation(len(table.target))
        test, train = order[:TEST_ROWS], order[TEST_ROWS:]
        if length > len(train):
            raise ValueError(f"real_lengths must be at most {len(train)}, the training rows; got {length}")
        scaler = StandardScaler().fit(table.features[train])
        reduce = PCA(config.dimension, whiten=True).fit(scaler.transform(table.features[train]))
        features = reduce.transform(scaler.transform(table.features))
        target = (table.target - table.target[train].mean()) / table.target[train].std()
        contexts.append(features[train[:length]])  # the order is random already
        labels.append(target[train[:length], None])
        queries.append(features[test])
        targets.append(target[test, None])
    return Prompt(*(jnp.asarray(np.stack(arrays), jnp.float32) for arrays in (contexts, labels, queries, targets)))


def real_errors(fitted: Fitted, config: Config) -> dict[int, dict[str, Float[np.ndarray, " splits"]]]:
    """Mean squared error on held-out rows, in variances of the target; arms averaged over seeds, one number a split.

    The baselines are fitted on the context alone, with an intercept; ridge chooses its penalty there by
    leave-one-out.
    """
    errors = {}
    for length in config.real_lengths:
        prompts = real_prompts(config, length)
        arms = fitted.map(_arm_errors, shared=(prompts,))
        models = {
            "ridge": RidgeCV(alphas=np.logspace(-3, 4, 29)),
            "ordinary least squares": LinearRegression(),
            "constant": DummyRegressor(),
        }
        errors[length] = {name: np.asarray(value, np.float64).mean(axis=0) for name, value in arms.items()} | {
            name: _fitted_errors(model, prompts) for name, model in models.items()
        }
    return errors


def _arm_errors(model: Regressors, prompts: Prompt) -> dict[str, Float[Array, " splits"]]:
    def one_split(prompt: Prompt) -> dict[str, Array]:
        rows = prompt.query.shape[0]
        context = jnp.broadcast_to(prompt.covariates, (rows, *prompt.covariates.shape))
        labels = jnp.broadcast_to(prompt.labels, (rows, *prompt.labels.shape))
        answers = model(Prompt(context, labels, prompt.query, prompt.target))
        return {name: jnp.mean((answer - prompt.target) ** 2) for name, answer in answers.items()}

    return jax.lax.map(one_split, prompts)


def _fitted_errors(model: RegressorMixin, prompts: Prompt) -> Float[np.ndarray, " splits"]:
    errors = []
    for context, labels, query, target in zip(
        *(np.asarray(a, np.float64) for a in (prompts.covariates, prompts.labels, prompts.query, prompts.target)),
        strict=True,
    ):
        answer = model.fit(context, labels[:, 0]).predict(query)  # pyright: ignore[reportAttributeAccessIssue]
        errors.append(np.mean((answer - target[:, 0]) ** 2))
    return np.array(errors)


def wins_and_losses(errors: dict[int, dict[str, np.ndarray]], arm: str) -> list[dict[str, Any]]:
    """Against each baseline at each length: the mean difference in error with its interval over splits, and who wins.

    A win or a loss is a 95 % interval of the paired difference that leaves zero out.
    """
    rows = []
    for length, methods in errors.items():
        for baseline in ("ridge", "ordinary least squares", "constant"):
            difference = estimate(methods[arm] - methods[baseline])
            verdict = "wins" if difference.high < 0 else "loses" if difference.low > 0 else "undecided"
            rows.append(
                {
                    "context length": length,
                    "against": baseline,
                    "error": float(methods[arm].mean()),
                    "baseline error": float(methods[baseline].mean()),
                    "difference": str(difference),
                    "verdict": verdict,
                }
            )
    return rows
