"""Each part's pieces: against closed forms, NumPy, scikit-learn and differences, in double precision."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import ElasticNet
from sklearn.svm import LinearSVC

from experiments.implicit_differentiation import (
    catalogue,
    dictionary,
    distillation,
    precision,
    spheres,
    support_vectors,
)
from experiments.implicit_differentiation.config import ROWS, SOLVERS
from jattn import implicit


@pytest.fixture(autouse=True)
def _double() -> Any:
    with jax.enable_x64(True):
        yield


def doubled(tree: Any) -> Any:
    return jax.tree.map(
        lambda each: each.astype(jnp.float64) if jnp.issubdtype(each.dtype, jnp.floating) else each, tree
    )


def test_ridge_errors_are_those_of_closed_forms() -> None:
    data = precision.problem(3)
    found = jax.jit(precision.curve, static_argnums=1)(data, 6)
    rows, targets, penalties = map(np.asarray, data)
    hessian = rows.T @ rows / len(rows) + np.diag(penalties)
    solution = np.linalg.solve(hessian, rows.T @ targets / len(rows))
    point = np.zeros(10)
    for _ in range(6):
        point = point - (hessian @ point - rows.T @ targets / len(rows)) / 11
    off = point - solution
    np.testing.assert_allclose(found.distance[-1], np.linalg.norm(off), rtol=1e-9)
    by_theorem = np.linalg.norm(np.linalg.solve(hessian, np.diag(off)), 2)
    np.testing.assert_allclose(found.implicit[-1], by_theorem, rtol=1e-7)
    bound = np.linalg.norm(off) / np.linalg.eigvalsh(hessian)[0]  # A does not depend on x, and B is diag x
    assert found.bound[-1] <= bound * (1 + 1e-9)
    np.testing.assert_allclose(found.bound[-1], np.abs(off).max() / np.linalg.eigvalsh(hessian)[0], rtol=1e-6)
    solve = implicit.minimise(precision.objective, precision.descent(data, 6), adjoint=implicit.Unrolled(), check=None)
    unrolled = jax.jit(jax.jacrev(lambda each: solve(jnp.zeros(10), each, data.rows, data.targets).value))(penalties)
    exact = -np.linalg.solve(hessian, np.diag(solution))
    np.testing.assert_allclose(found.unrolled[-1], np.linalg.norm(unrolled - exact, 2), rtol=1e-9)


@pytest.mark.parametrize("name", ["optimal transport", "proximal gradient"])
def test_rows_of_the_catalogue(name: str) -> None:
    right, wrong = catalogue.errors(catalogue.rows()[name]())
    assert right < 1e-8
    assert wrong > 1e-2


@pytest.mark.slow
def test_all_rows_of_the_catalogue() -> None:
    assert tuple(catalogue.rows()) == ROWS
    for make in catalogue.rows().values():
        right, wrong = catalogue.errors(make())
        assert right < 1e-8
        assert wrong > 1e-2
    row = catalogue.rows()["isotonic regression"]()
    nearest = IsotonicRegression().fit_transform(np.arange(len(row.outer)), np.asarray(row.outer))
    np.testing.assert_allclose(row.solver(row.outer).primal, nearest, atol=1e-9)


def machine() -> support_vectors.Data:
    """Digits with few features."""
    data = support_vectors.split(0, 12, 200)
    return doubled(support_vectors.Data(data.rows, data.labels, data.other[:40], data.wanted[:40]))


def test_splits_of_digits_and_features_of_spectral_norm_one() -> None:
    data = support_vectors.split(0, 12, 50)
    assert [len(each) for each in data] == [50, 50, 1747, 1747]
    np.testing.assert_allclose(np.linalg.norm(data.rows, 2), 1, rtol=1e-5)
    np.testing.assert_allclose(data.rows.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(data.labels.sum(axis=1), 1)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_find_the_machine_of_liblinear(name: str) -> None:
    """Its W; its score is that of ½‖W‖² + C Σ hinge, so that C = 1/θ."""
    data, theta = machine(), 0.02
    steps = {"projected gradient": 2000, "mirror descent": 4000, "block coordinate descent": 500}[name]
    init = jnp.full_like(data.labels, 0.1)
    x = jax.jit(support_vectors.solver(name, steps))(init, jnp.asarray(theta), data.rows, data.labels)
    found = support_vectors.weights(x, jnp.asarray(theta), data.rows, data.labels)
    peer = LinearSVC(
        C=1 / theta, multi_class="crammer_singer", fit_intercept=False, tol=1e-8, max_iter=100_000, random_state=0
    ).fit(np.asarray(data.rows), np.asarray(data.labels.argmax(axis=1)))
    np.testing.assert_allclose(found.T, peer.coef_, atol=3e-3)


@pytest.mark.parametrize("way", support_vectors.WAYS)
def test_hypergradients_of_the_machine(way: str | None) -> None:
    data, at, move = machine(), -4.0, 1e-5

    @jax.jit
    def found(log_theta: Any) -> support_vectors.Found:
        return support_vectors.hypergradient(log_theta, data, "block coordinate descent", 300, way)

    made = found(jnp.asarray(at))
    want = (found(jnp.asarray(at + move)).loss - found(jnp.asarray(at - move)).loss) / (2 * move)
    np.testing.assert_allclose(made.slope, want, rtol=5e-3)
    assert abs(made.direct / want - 1) > 0.1


def test_the_direct_slope_holds_the_dual_variables() -> None:
    data, at, move = machine(), -4.0, 1e-5
    run = jax.jit(support_vectors.solver("block coordinate descent", 5))
    x = run(jnp.full_like(data.labels, 0.1), jnp.exp(jnp.asarray(at)), data.rows, data.labels)
    rows, labels, other, wanted = map(np.asarray, data)

    def held(log_theta: float) -> float:
        scores = other @ rows.T @ (labels - np.asarray(x)) / np.exp(log_theta)
        return 0.5 * ((scores - wanted) ** 2).sum(axis=1).mean()

    program = jax.jit(lambda at: support_vectors.hypergradient(at, data, "block coordinate descent", 5, None))
    made = program(jnp.asarray(at))
    np.testing.assert_allclose(made.loss, held(at), rtol=1e-9)
    np.testing.assert_allclose(made.direct, (held(at + move) - held(at - move)) / (2 * move), rtol=1e-6)


def pictures() -> distillation.Images:
    return doubled(distillation.split(0, 60, "digits"))


def test_hypergradients_of_distilled_images() -> None:
    data = pictures()
    images = distillation.drawn(data, jax.random.key(0))
    direction = jnp.asarray(np.random.default_rng(0).normal(size=images.shape))
    weights = jax.jit(lambda images: distillation.trained(images, 0.05, 2000))(images)
    rows = np.concatenate([images, np.ones((10, 1))], axis=1)
    together = np.concatenate([weights["pixels"], weights["bias"][None]])
    shares = np.exp(rows @ together)
    shares = shares / shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rows.T @ (shares - np.eye(10)) / 10 + 0.05 * together, 0, atol=1e-8)

    for unrolled in (False, True):
        program = jax.jit(
            jax.value_and_grad(
                lambda images, unrolled=unrolled: distillation.outer_loss(images, data, 0.05, 2000, unrolled)
            )
        )
        above, below = (program(images + sign * 1e-5 * direction)[0] for sign in (1, -1))
        np.testing.assert_allclose((program(images)[1] * direction).sum(), (above - below) / 2e-5, rtol=1e-3)


def test_images_to_compare_with() -> None:
    data = pictures()
    for kind, label in zip(distillation.drawn(data, jax.random.key(1)), range(10), strict=True):
        same = (np.asarray(data.training) == np.asarray(kind)).all(axis=1)
        assert np.asarray(data.training_classes)[same].tolist() == [label]
    third = np.asarray(data.training)[np.asarray(data.training_classes) == 3].mean(axis=0)
    np.testing.assert_allclose(distillation.means(data)[3], third)


def test_codes_are_elastic_nets_and_have_derivatives() -> None:
    data = doubled(dictionary.split(0, 20, 20))
    atoms, l1 = 2 * data.training[:4], 0.02
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    found = dictionary.codes(atoms, data.validation, jnp.asarray(l1), 400)
    width = unit.shape[1]
    peer = ElasticNet(
        alpha=(l1 + dictionary.L2) / width, l1_ratio=l1 / (l1 + dictionary.L2), fit_intercept=False, tol=1e-12
    )
    want = np.stack([peer.fit(np.asarray(unit.T), sample).coef_ for sample in np.asarray(data.validation)])
    np.testing.assert_allclose(found, want, atol=1e-7)
    assert 0.05 < (want == 0).mean() < 0.95
    direction = jnp.asarray(np.random.default_rng(0).normal(size=atoms.shape))

    def loss(atoms: Any) -> Any:
        model = dictionary.Model(atoms, jnp.array([1.0, -2, 0.5, 3]), jnp.asarray(0.1))
        labels = data.training_labels
        return dictionary.loss(model, data.training, labels, jnp.asarray(l1), jnp.asarray(0.01), 400)

    program = jax.jit(jax.value_and_grad(loss))
    above, below = (program(atoms + sign * 1e-5 * direction)[0] for sign in (1, -1))
    np.testing.assert_allclose((program(atoms)[1] * direction).sum(), (above - below) / 2e-5, rtol=1e-4)


def test_samples_are_split_and_standardised() -> None:
    data = dictionary.split(1, 100, 80)
    assert [len(each) for each in data] == [100, 100, 80, 80, 389, 389]
    np.testing.assert_allclose(data.training.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(data.training.std(axis=0), 30**-0.5, rtol=1e-3)


def test_sensitivities_of_discs() -> None:
    """Energy by loops, and the least-norm solution by a pseudo-inverse."""
    discs, side = 8, spheres.box(8, 1.0)
    start = side * jax.random.uniform(jax.random.key(0), (discs, 2))
    diameters = [1.0] * 4 + [spheres.DIAMETER] * 4
    area = sum(np.pi / 4 * each**2 for each in diameters)
    np.testing.assert_allclose(area / side**2, 1.0)
    total = 0.0
    for i in range(discs):
        for j in range(i):
            apart = np.asarray(start[i] - start[j])
            apart = apart - side * np.round(apart / side)
            sigma = (diameters[i] + diameters[j]) / 2
            total += 0.5 * max(0.0, 1 - np.linalg.norm(apart) / sigma) ** 2
    diameter = jnp.asarray(spheres.DIAMETER)
    np.testing.assert_allclose(spheres.energy(start, diameter, side), total, rtol=1e-10)
    minimum = jax.jit(spheres.fire(side, 2000))(start, diameter)
    condition = spheres.equilibrium(side)
    np.testing.assert_allclose(condition.residual(minimum, diameter), 0, atol=1e-12)

    def force(flat: Any, diameter: Any) -> Any:
        return condition.residual(flat.reshape(-1, 2), diameter).ravel()

    hessian, image = jax.jit(jax.jacfwd(force, (0, 1)))(minimum.ravel(), diameter)
    assert (np.abs(np.linalg.eigvalsh(hessian)) < 1e-9).sum() >= 2
    want = -np.linalg.pinv(hessian, rcond=1e-9) @ image
    for linear_solver in (implicit.Minres(1e-12), implicit.BiCGStab(1e-10)):
        program = jax.jit(partial(spheres.sensitivity, side=side, condition=condition, linear_solver=linear_solver))
        found = program(minimum)
        np.testing.assert_allclose(found.ravel(), want, atol=1e-6 * np.abs(want).max())
