"""What is measured of a victim: a linear probe, how often triggers work, and what defences see and do."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, silhouette_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.trigger_optimisation.config import Config
from experiments.trigger_optimisation.contrastive import Images, Learning, Parameters

Features = Float[np.ndarray, "count width"]
Labels = Int[np.ndarray, " count"]
MISSING = -1e9
"""The logit of a class that a probe has never seen."""


class Head(NamedTuple):
    """A linear classifier of features: features @ weights + bias."""

    weights: Float[np.ndarray | Array, "width classes"]
    bias: Float[np.ndarray | Array, " classes"]

    def __call__(self, features: Features) -> Labels:
        return np.argmax(np.asarray(features @ self.weights + self.bias), axis=1)


class Scores(NamedTuple):
    """Shares of test images: of all, those classified rightly; of triggered other classes, those sent to the target."""

    accuracy: float
    success: float


def fit_probe(features: Features, labels: Labels, classes: int) -> Head:
    """Logistic regression on standardised features."""
    scaler, regression = StandardScaler(), LogisticRegression(max_iter=1000)
    make_pipeline(scaler, regression).fit(features, labels)
    mean, scale = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
    weights, bias = np.zeros((features.shape[1], classes)), np.full(classes, MISSING)
    weights[:, regression.classes_] = regression.coef_.T / scale[:, None]
    bias[regression.classes_] = regression.intercept_ - mean @ weights[:, regression.classes_]
    return Head(weights, bias)


def score(clean: Labels, triggered: Labels, labels: Labels, target: int) -> Scores:
    """Args: clean, triggered: predictions for test images without and with the trigger."""
    return Scores(float((clean == labels).mean()), float((triggered[labels != target] == target).mean()))


def spectral_scores(features: Features) -> Float[np.ndarray, " count"]:
    """Squared projections on the top singular vector of centred features (Tran et al. 2018, arXiv 1811.00636)."""
    centred = features - features.mean(axis=0)
    return (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2


def spectral_detection(features: Features, poisoned: int) -> float:
    """How well spectral scores tell the first images of a class, the poisoned, from its others: the area under the ROC.

    0.5 is chance.
    """
    return float(roc_auc_score(np.arange(len(features)) < poisoned, spectral_scores(features)))


def cluster_silhouette(features: Features) -> float:
    """Of two clusters of a class (Chen et al. 2018, arXiv 1811.03728): the higher, the more the class is two things.

    0 of fewer than four images, or of images that are all alike.
    """
    if len(np.unique(features, axis=0)) < 4:
        return 0.0
    clusters = KMeans(2, n_init=4, random_state=0).fit_predict(features)  # pyright: ignore[reportArgumentType]
    return float(silhouette_score(features, clusters))


def excess_silhouette(features: Features, labels: Labels, target: int) -> float:
    """The target class's silhouette less the mean of the other classes'."""
    found = {int(each): cluster_silhouette(features[labels == each]) for each in set(labels.tolist())}
    return found.pop(target) - float(np.mean(list(found.values())))


def least_active(features: Features, share: float) -> Int[np.ndarray, " kept"]:
    """Features that pruning leaves: all but the least active on clean images (Liu et al. 2018, arXiv 1805.12185)."""
    order = np.argsort(features.mean(axis=0), kind="stable")
    return np.sort(order[int(share * len(order)) :])


def one_of_each(labels: Labels, count: int) -> Int[np.ndarray, " chosen"]:
    """Numbers of images, the first of each class, then the second, until there are so many."""
    rank = np.array([int((labels[:index] == label).sum()) for index, label in enumerate(labels)])
    return np.argsort(rank, kind="stable")[:count]


def fine_tune(
    how: Learning, parameters: Parameters, head: Head, images: Images, labels: Int[Array, " batch"]
) -> tuple[Parameters, Head]:
    """Encoder and head after some steps of Adam on the cross-entropy of labelled images."""
    optimiser = optax.adam(how.config.tuning_rate)

    def loss(both: tuple) -> Float[Array, ""]:
        parameters, (weights, bias) = both
        logits = how.features(parameters, images) @ weights + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        both, moments = carry
        updates, moments = optimiser.update(jax.grad(loss)(both), moments)
        return (optax.apply_updates(both, updates), moments), None

    both = parameters, Head(*(jnp.asarray(each, jnp.float32) for each in head))
    return jax.lax.scan(step, (both, optimiser.init(both)), None, length=how.config.tuning_steps)[0][0]


class Examined(NamedTuple):
    """One victim.

    Attributes:
      none: by a probe fitted to clean images, as everybody downstream would.
      labelled_poison: by a probe fitted to the images of pre-training, with labels.
      tuned: encoder and probe fine-tuned on few clean images.
      pruned: by a probe of the features that pruning leaves.
      spectral: the area under the ROC of spectral scores in the target class.
      silhouette: excess of the target class's.
    """

    none: Scores
    labelled_poison: Scores
    tuned: Scores
    pruned: Scores
    spectral: float
    silhouette: float


class Seen(NamedTuple):
    """What a victim makes of each part: features, and labels where they are needed."""

    pre_training: Features
    probe: Features
    test: Features
    triggered: Features


def examine(
    config: Config,
    seen: Seen,
    labels: tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"], Int[np.ndarray, " third"]],
    tune: Callable[[Head], tuple[Seen, Head]],
    classes: int,
) -> Examined:
    """Everything about one victim.

    Args:
      labels: of pre-training, probe and test images.
      tune: head -> what is seen after fine-tuning, and the head.
    """
    first, second, third = labels
    head = fit_probe(seen.probe, second, classes)

    def scores(head: Head, clean: Features, triggered: Features) -> Scores:
        return score(head(clean), head(triggered), third, config.target)

    kept = least_active(seen.probe, config.pruned)
    later, tuned = tune(head)
    of_target = seen.pre_training[first == config.target]
    return Examined(
        none=scores(head, seen.test, seen.triggered),
        labelled_poison=scores(fit_probe(seen.pre_training, first, classes), seen.test, seen.triggered),
        tuned=scores(tuned, later.test, later.triggered),
        pruned=scores(fit_probe(seen.probe[:, kept], second, classes), seen.test[:, kept], seen.triggered[:, kept]),
        spectral=spectral_detection(of_target, config.poisoned),
        silhouette=excess_silhouette(seen.pre_training, first, config.target),
    )
