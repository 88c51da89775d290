"""Real regression tables that ship inside installed packages."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.datasets import load_diabetes

DIABETES_SHA256 = "e9c1f7559552854a24dc45b41c446ce5f79f96e5da081bcce24b57492720b3f7"


@dataclass(frozen=True)
class Table:
    """A regression table: one row a case, in the units of its source."""

    features: Float[np.ndarray, "rows features"]
    target: Float[np.ndarray, " rows"]
    names: tuple[str, ...]


def diabetes() -> Table:
    """442 patients, 10 measurements, and a score of disease progression one year later.

    Efron, Hastie, Johnstone and Tibshirani, "Least Angle Regression", Annals of Statistics 2004; the unscaled
    numbers as scikit-learn ships them.

    Raises:
      ValueError: the installed numbers are not the ones this project was checked with.
    """
    bunch: Any = load_diabetes(scaled=False)
    features, target = np.asarray(bunch.data, np.float64), np.asarray(bunch.target, np.float64)
    digest = hashlib.sha256(features.astype("<f8").tobytes() + target.astype("<f8").tobytes()).hexdigest()
    if digest != DIABETES_SHA256:
        raise ValueError(f"diabetes table must have SHA-256 {DIABETES_SHA256}; scikit-learn gave {digest}")
    return Table(features, target, tuple(bunch.feature_names))
