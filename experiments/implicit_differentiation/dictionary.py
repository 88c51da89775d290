"""Breast-cancer samples told apart by their sparse codes, in a dictionary that is learned for the purpose.

A sample's code is argmin_z ½‖a - zD‖² + l1 ‖z‖₁ + ½ l2 ‖z‖², an elastic net, with atoms, the rows of D, of length 1.
Dictionary and logistic regression on the codes are learned together through the codes' implicit derivative (Mairal,
Bach and Ponce, "Task-driven dictionary learning", IEEE PAMI 2012); the beginning is a dictionary of the samples alone.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxopt.prox import prox_elastic_net
from jaxtyping import Array, Float
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from jattn import implicit

L2 = 0.1
"""Of the codes, which makes them unique."""
RECORDS = 10
"""Points of the learning at which the validation samples choose."""
REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Squared penalties of a logistic regression, over ‖w‖²/2 beside a mean loss."""


class Samples(NamedTuple):
    """Standardised features divided by the root of their number, and labels of 0 and 1."""

    training: Float[Array, "training features"]
    training_labels: Float[Array, " training"]
    validation: Float[Array, "validation features"]
    validation_labels: Float[Array, " validation"]
    test: Float[Array, "test features"]
    test_labels: Float[Array, " test"]


class Model(NamedTuple):
    """Atoms of any length, and a logistic regression on codes."""

    atoms: Float[Array, "atoms features"]
    weights: Float[Array, " atoms"]
    bias: Float[Array, ""]


class Areas(NamedTuple):
    """Areas under the receiver operating characteristic, of the test samples, settings chosen by validation samples.

    Attributes:
      task_driven, unsupervised: of codes in learned dictionaries, and in those of the samples alone.
      raw: of a logistic regression with a squared penalty.
      shuffled: as `task_driven`, learned from shuffled labels, with settings that these choose.
    """

    task_driven: float
    unsupervised: float
    raw: float
    shuffled: float


def split(seed: int, training: int, validation: int) -> Samples:
    """At random; the rest is for testing. Features are standardised by the training samples."""
    found: Any = load_breast_cancer()
    order = np.random.default_rng(seed).permutation(len(found.target))
    features, labels = found.data[order], found.target[order].astype(np.float32)
    known = features[:training]
    features = ((features - known.mean(axis=0)) / known.std(axis=0) / np.sqrt(features.shape[1])).astype(np.float32)
    parts = np.split(np.arange(len(order)), [training, training + validation])
    return Samples(*(jnp.asarray(each[part]) for part in parts for each in (features, labels)))


def codes(
    atoms: Float[Array, "atoms features"], samples: Float[Array, "count features"], l1: Float[Array, ""], steps: int
) -> Float[Array, "count atoms"]:
    """Elastic nets by accelerated proximal gradient steps; derivatives are those of the solutions.

    Momentum is Nesterov's for strongly convex objectives, as the squared penalty makes these.
    """
    unit = atoms / jnp.linalg.norm(atoms, axis=1, keepdims=True)
    rate = jax.lax.stop_gradient(1 / jnp.linalg.norm(unit @ unit.T, 2))
    ill = jnp.sqrt(1 + 1 / (rate * L2))
    momentum = (ill - 1) / (ill + 1)

    def objective(code: Array, smooth: tuple[Array, Array]) -> Float[Array, ""]:
        unit, sample = smooth
        return 0.5 * ((sample - code @ unit) ** 2).sum()

    def step(state: tuple[Array, Array], smooth: tuple, rest: tuple) -> tuple[Array, Array]:
        code, ahead = state
        after = prox_elastic_net(ahead - rate * jax.grad(objective)(ahead, smooth), rest, rate)
        return after, after + momentum * (after - code)

    solver = implicit.Iteration(step, steps, start=lambda code: (code, code), read=lambda state: state[0])
    # The derivatives do not depend on this rate. Of a thousand codes some always are at a kink, the edge of a support,
    # and count no more than others: what is judged is the residual alone.
    condition = replace(implicit.proximal_gradient(objective, prox_elastic_net, 1 / len(atoms)), activity=None)
    solve = implicit.root(condition, solver, adjoint=implicit.Implicit(implicit.Dense()), check="poison")
    init = jnp.zeros(len(atoms))
    # The elastic net of jaxopt has l1 and the ratio of the squared penalty to it.
    return jax.vmap(lambda sample: solve(init, (unit, sample), (l1, L2 / l1)).value)(samples)


def loss(
    model: Model,
    samples: Float[Array, "count features"],
    labels: Float[Array, " count"],
    l1: Float[Array, ""],
    penalty: Float[Array, ""],
    steps: int,
) -> Float[Array, ""]:
    """Mean logistic loss of the codes, with a squared penalty on the weights."""
    scores = codes(model.atoms, samples, l1, steps) @ model.weights + model.bias
    return optax.losses.sigmoid_binary_cross_entropy(scores, labels).mean() + 0.5 * penalty * (model.weights**2).sum()


def unsupervised(
    samples: Float[Array, "count features"],
    start: Float[Array, "atoms features"],
    l1: Array,
    code_steps: int,
    steps: int,
) -> Float[Array, "atoms features"]:
    """Atoms that code the samples well: Adam on the mean squared error at the codes, which are held in each step."""
    optimiser = optax.adam(0.01)

    def error(atoms: Array) -> Float[Array, ""]:
        found = jax.lax.stop_gradient(codes(atoms, samples, l1, code_steps))
        unit = atoms / jnp.linalg.norm(atoms, axis=1, keepdims=True)
        return ((samples - found @ unit) ** 2).sum(axis=1).mean()

    def step(carry: tuple, _: None) -> tuple:
        atoms, moments = carry
        updates, moments = optimiser.update(jax.grad(error)(atoms), moments)
        return (optax.apply_updates(atoms, updates), moments), None

    return jax.lax.scan(step, (start, optimiser.init(start)), None, length=steps)[0][0]


def learn(model: Model, samples: Array, labels: Array, l1: Array, penalty: Array, code_steps: int, steps: int) -> Model:
    """Adam on all of the model; a model for each of `RECORDS` points along the way, the last one the end."""
    optimiser = optax.adam(0.01)

    def step(carry: tuple, _: None) -> tuple:
        model, moments = carry
        slope = jax.grad(loss)(model, samples, labels, l1, penalty, code_steps)
        updates, moments = optimiser.update(slope, moments)
        return (optax.apply_updates(model, updates), moments), None

    def record(carry: tuple, _: None) -> tuple:
        carry, _ = jax.lax.scan(step, carry, None, length=steps // RECORDS)
        return carry, carry[0]

    return jax.lax.scan(record, (model, optimiser.init(model)), None, length=RECORDS)[1]


@partial(jax.jit, static_argnames=("code_steps", "steps"))
def _prepared(samples: Array, start: Array, l1: Array, parts: tuple, code_steps: int, steps: int) -> tuple:
    """Atoms of the samples alone, and codes of every part."""
    atoms = unsupervised(samples, start, l1, code_steps, steps)
    return atoms, [codes(atoms, part, l1, code_steps) for part in parts]


@partial(jax.jit, static_argnames=("code_steps", "steps"))
def _scores(models: Model, data: Samples, labels: Array, l1: Array, code_steps: int, steps: int) -> tuple:
    """Of validation and of test samples, by penalty and record; learned from every penalty's own beginning."""

    def learned(model: Model, penalty: Array) -> Model:
        return learn(model, data.training, labels, l1, penalty, code_steps, steps)

    def scores(model: Model, part: Array) -> Array:
        return codes(model.atoms, part, l1, code_steps) @ model.weights + model.bias

    found = jax.vmap(learned)(models, jnp.asarray(REGULARISATIONS))
    # One after the other: all at once would hold the codes of every model.
    return jax.lax.map(
        lambda one: jax.lax.map(lambda model: tuple(scores(model, part) for part in (data.validation, data.test)), one),
        found,
    )


def areas(data: Samples, seed: int, atoms: int, l1s: tuple[float, ...], code_steps: int, steps: int) -> Areas:
    """Of one split: with the best of all settings by the validation samples."""
    generator = np.random.default_rng(seed)
    start = data.training[generator.permutation(len(data.training))[:atoms]]
    true = np.asarray(data.training_labels), np.asarray(data.validation_labels)
    mixed = generator.permutation(true[0]), generator.permutation(true[1])
    unlearned, learned, shuffled = [], [], []
    for l1 in l1s:
        found, parts = _prepared(data.training, start, jnp.float32(l1), data[::2], code_steps, steps)
        training, validation, test = map(np.asarray, parts)
        for (labels, judged), kept in ((true, learned), (mixed, shuffled)):
            fits = [_logistic(training, labels, penalty) for penalty in REGULARISATIONS]
            models = Model(
                jnp.stack([found] * len(fits)),
                jnp.asarray(np.stack([fit.coef_[0] for fit in fits]), jnp.float32),
                jnp.asarray(np.stack([fit.intercept_[0] for fit in fits]), jnp.float32),
            )
            scores = _scores(models, data, jnp.asarray(labels), jnp.float32(l1), code_steps, steps)
            of_validation, of_test = (np.asarray(each).reshape(-1, each.shape[-1]) for each in scores)
            kept += [_pair(judged, one, data, other) for one, other in zip(of_validation, of_test, strict=True)]
            if kept is learned:
                pairs = [(fit.decision_function(validation), fit.decision_function(test)) for fit in fits]
                unlearned += [_pair(judged, one, data, other) for one, other in pairs]
    fits = [_logistic(data.training, true[0], penalty) for penalty in REGULARISATIONS]
    raw = [
        _pair(true[1], fit.decision_function(data.validation), data, fit.decision_function(data.test)) for fit in fits
    ]
    return Areas(*(max(each, key=lambda pair: pair[0])[1] for each in (learned, unlearned, raw, shuffled)))


def _logistic(samples: Any, labels: np.ndarray, penalty: float) -> Any:
    return LogisticRegression(C=1 / (penalty * len(labels)), max_iter=10_000).fit(samples, labels)


def _pair(judged: Any, validation: Any, data: Samples, test: Any) -> tuple[float, float]:
    """Areas of the validation and of the test samples."""
    return float(roc_auc_score(judged, validation)), float(roc_auc_score(data.test_labels, test))
