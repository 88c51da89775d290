"""The trained models, unchanged, on real input: the diabetes table, one context of patients at a time.

Rows are split in two. Everything that is fitted before the context is fitted on training rows only: the
standardisation of the ten features, their reduction to the models' dimension by principal components (each scaled
to unit variance), and the standardisation of the target. A context is drawn from training rows; the queries are the
held-out rows.
"""

from dataclasses import dataclass
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
from experiments.in_context_regression.model import Regressors, squared_errors
from jattn.data.linear_prompts import Prompt
from jattn.data.tables import diabetes
from jattn.runs.claim import estimate
from jattn.train import Fitted
from kernels.trees import register_dataclass

TEST_ROWS = 100


@register_dataclass
@dataclass(frozen=True)
class Splits:
    """Random splits of the table: one context each, and the held-out rows as its queries."""

    context: Float[Array, "splits length dimension"]
    labels: Float[Array, "splits length"]
    query: Float[Array, "splits rows dimension"]
    target: Float[Array, "splits rows"]


def split_table(config: Config, length: int) -> Splits:
    """Contexts of `length` training rows.

    Raises:
      ValueError: more rows than there are for training.
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
        labels.append(target[train[:length]])
        queries.append(features[test])
        targets.append(target[test])
    return Splits(*(jnp.asarray(np.stack(arrays), jnp.float32) for arrays in (contexts, labels, queries, targets)))


def real_errors(fitted: Fitted, config: Config) -> dict[int, dict[str, Float[np.ndarray, " splits"]]]:
    """Mean squared error on held-out rows, in variances of the target; arms averaged over seeds, one number a split.

    The baselines are fitted on the context alone, with an intercept; ridge chooses its penalty there by
    leave-one-out.
    """
    errors = {}
    for length in config.real_lengths:
        splits = split_table(config, length)
        arms = fitted.map(_arm_errors, shared=(splits,))
        models = {
            "ridge": RidgeCV(alphas=np.logspace(-3, 4, 29)),
            "ordinary least squares": LinearRegression(),
            "constant": DummyRegressor(),
        }
        errors[length] = {name: np.asarray(value, np.float64).mean(axis=0) for name, value in arms.items()} | {
            name: _fitted_errors(model, splits) for name, model in models.items()
        }
    return errors


def _arm_errors(model: Regressors, splits: Splits) -> dict[str, Float[Array, " splits"]]:
    def one_split(
        context: Float[Array, "length dimension"],
        labels: Float[Array, " length"],
        query: Float[Array, "rows dimension"],
        target: Float[Array, " rows"],
    ) -> dict[str, Array]:
        rows = len(query)
        prompt = Prompt(
            jnp.broadcast_to(context, (rows, *context.shape)),
            jnp.broadcast_to(labels[:, None], (rows, len(labels), 1)),
            query,
            target[:, None],
        )
        return squared_errors(model, prompt)

    return jax.lax.map(lambda one: one_split(*one), (splits.context, splits.labels, splits.query, splits.target))


def _fitted_errors(model: RegressorMixin, splits: Splits) -> Float[np.ndarray, " splits"]:
    errors = []
    for context, labels, query, target in zip(
        *(np.asarray(a, np.float64) for a in (splits.context, splits.labels, splits.query, splits.target)), strict=True
    ):
        answer = model.fit(context, labels).predict(query)  # pyright: ignore[reportAttributeAccessIssue]
        errors.append(np.mean((answer - target) ** 2))
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
                    "length": length,
                    "against": baseline,
                    "error": float(methods[arm].mean()),
                    "baseline error": float(methods[baseline].mean()),
                    "difference": str(difference),
                    "verdict": verdict,
                }
            )
    return rows
