"""Every method reaches the known answers of quadratic problems; each method's bias is what its theory says."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jattn.bilevel import (
    BLOCC,
    BOME,
    BVFSM,
    F2SA,
    LVHBA,
    PBGD,
    SABA,
    SOBA,
    AiPOD,
    BiCGAFFA,
    Blocks,
    ConjugateGradientAID,
    Method,
    NeumannAID,
    Problem,
    Proximity,
    StocBiO,
    Unrolled,
    extrapolate,
    growing_penalty,
    onto_affine,
    onto_convex,
    solve,
)

OUTER, INNER, ROWS = 2, 3, 2
DECAY = 0.5


class Quadratic:
    """F = ½‖y - target‖² + DECAY/2 ‖x‖², f = ½ yᵀ hessian y - yᵀ(cross x + shift), A y + C x - e <= 0 or = 0."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        rotation = np.linalg.qr(generator.normal(size=(INNER, INNER)))[0]
        self.hessian = rotation @ np.diag([1.0, 1.5, 2.0]) @ rotation.T
        self.cross, self.shift, self.target = (generator.normal(size=size) for size in ((INNER, OUTER), INNER, INNER))
        self.of_inner, self.of_outer = (generator.normal(size=(ROWS, size)) for size in (INNER, OUTER))
        self.right = np.array([-0.5, 1.0])

    def problem(self, kind: str = "") -> Problem:
        def rows(x: jax.Array, y: jax.Array) -> jax.Array:
            return self.of_inner @ y + self.of_outer @ x - self.right

        if kind == "equality":
            project = onto_affine(rows, jnp.zeros(OUTER), jnp.zeros(INNER))
        else:
            project = onto_convex(rows, tolerance=1e-10)
        return Problem(
            lambda x, y: 0.5 * jnp.sum((y - self.target) ** 2) + DECAY / 2 * x @ x,
            lambda x, y: 0.5 * y @ self.hessian @ y - y @ (self.cross @ x + self.shift),
            **({} if not kind else {kind: rows, "project_joint": project}),
        )

    def optimum(self, active: list[int], approximate_inverse: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """x, y and multipliers by linear systems, with these rows met as equations.

        With an approximate inverse of the Hessian in the hypergradient, where a biased method ends.
        """
        of_inner, of_outer, right = self.of_inner[active], self.of_outer[active], self.right[active]
        count = len(active)
        kkt = np.block([[self.hessian, of_inner.T], [of_inner, np.zeros((count, count))]])
        slope = np.linalg.solve(kkt, np.vstack([self.cross, -of_outer]))
        constant = np.linalg.solve(kkt, np.concatenate([self.shift, right]))
        slope_y, constant_y = slope[:INNER], constant[:INNER]
        used = slope_y if approximate_inverse is None else approximate_inverse @ self.cross
        x = np.linalg.solve(used.T @ slope_y + DECAY * np.eye(OUTER), used.T @ (self.target - constant_y))
        return x, slope_y @ x + constant_y, slope[INNER:] @ x + constant[INNER:]

    def answer(self, kind: str) -> np.ndarray:
        """The optimal outer variables; of inequalities, the best over all sets of active rows."""
        if kind != "inequality":
            return self.optimum(list(range(ROWS)) if kind else [])[0]
        consistent = []
        for choice in product([False, True], repeat=ROWS):
            active = [row for row in range(ROWS) if choice[row]]
            x, y, multipliers = self.optimum(active)
            slack = self.of_inner @ y + self.of_outer @ x - self.right
            if (multipliers > 0.05).all() and np.delete(slack, active).max(initial=-1) < -0.05:
                consistent.append((0.5 * np.sum((y - self.target) ** 2) + DECAY / 2 * x @ x, tuple(x), active))
        _, x, active = min(consistent)
        assert len(active) == 1  # one row is active, and one is not, by a margin
        return np.array(x)


QUADRATIC = Quadratic()
SGD = optax.sgd(0.3)
LARGE = growing_penalty(1000.0, 0.0)

# Method, iterations, and the largest error of an outer variable.
UNCONSTRAINED: dict[str, tuple[Method, int, float]] = {
    "unrolled": (Unrolled(30, 0.5, SGD), 300, 1e-6),
    "truncated": (Unrolled(40, 0.5, SGD, differentiated=30), 300, 1e-6),
    "conjugate gradients": (ConjugateGradientAID(10, 0.5, SGD, adjoint_steps=3, tolerance=1e-9), 300, 1e-6),
    "neumann": (NeumannAID(10, 0.5, SGD, adjoint_steps=40, neumann_step=0.5), 300, 1e-6),
    "stocbio": (StocBiO(10, 0.5, SGD, adjoint_steps=40, neumann_step=0.5), 300, 1e-6),
    "soba": (SOBA(0.1, 0.3, 0.3), 3000, 1e-6),
    "saba": (SABA(0.05, 0.1, 0.1), 3000, 1e-5),
    "bome": (BOME(0.01, 20, 0.5, 0.5), 20_000, 2e-3),
    "f2sa": (F2SA(0.1, 20, 0.4, LARGE), 500, 1e-4),
    "pbgd": (PBGD(0.1, 20, 0.5, growing_penalty(1.0, 0.5)), 20_000, 1e-3),
    "lv-hba": (LVHBA(0.2, 0.2, 0.2, growing_penalty(1.0, 0.49)), 20_000, 2e-3),
    "bvfsm": (BVFSM(0.1, 20, 0.4, LARGE, regularisation=1e-2), 500, 5e-3),
    "bic-gaffa": (BiCGAFFA(0.2, 0.2, 0.2, growing_penalty(1.0, 0.49)), 20_000, 2e-3),
    "blocc": (BLOCC(0.1, 20, 0.4, 0.4, LARGE), 500, 1e-4),
}
PROJECTING = LVHBA(0.1, 0.2, 0.1, growing_penalty(1.0, 0.45))
COUPLED: dict[str, tuple[Method, int, float]] = {
    "bic-gaffa": (BiCGAFFA(0.1, 0.1, 0.1, growing_penalty(1.0, 0.45)), 20_000, 1e-2),
    "blocc": (BLOCC(0.1, 50, 0.4, 0.4, LARGE), 500, 1e-3),
}
INEQUALITY = COUPLED | {"lv-hba": (PROJECTING, 20_000, 2e-2)}
EQUALITY = COUPLED | {"lv-hba": (PROJECTING, 20_000, 1e-2), "aipod": (AiPOD(30, 0.5, SGD, tolerance=1e-9), 300, 1e-6)}
CASES = [
    (kind, name)
    for kind, methods in (("", UNCONSTRAINED), ("inequality", INEQUALITY), ("equality", EQUALITY))
    for name in methods
]


def end(method: Method, steps: int, problem: Problem) -> jax.Array:
    key = jax.random.key(0)
    run = jax.jit(lambda x, y: solve(problem, method, x, y, steps=steps, key=key, record_every=steps).state.outer)
    return run(jnp.zeros(OUTER), jnp.zeros(INNER))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_method_reaches_the_known_answer(kind: str, name: str) -> None:
    method, steps, tolerance = {"": UNCONSTRAINED, "inequality": INEQUALITY, "equality": EQUALITY}[kind][name]
    with jax.enable_x64(True):
        problem = QUADRATIC.problem(kind)
        if name != "lv-hba":
            problem = replace(problem, project_joint=None)
        if name == "saba":
            problem = in_blocks(problem)
        np.testing.assert_allclose(end(method, steps, problem), QUADRATIC.answer(kind), atol=tolerance)


@pytest.mark.parametrize("name", UNCONSTRAINED)
def test_states_can_be_saved(name: str) -> None:
    """Orbax refuses arrays without elements; and an iteration keeps the dtypes, of float32 too."""
    method, problem = UNCONSTRAINED[name][0], QUADRATIC.problem()
    problem = in_blocks(problem) if name == "saba" else problem
    before = jax.eval_shape(lambda: method.init(problem, jnp.zeros(OUTER), jnp.zeros(INNER), jax.random.key(0)))
    after = jax.eval_shape(lambda state: method.update(problem, state), before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert [leaf.dtype for leaf in jax.tree.leaves(before)] == [leaf.dtype for leaf in jax.tree.leaves(after)]
    assert all(leaf.size for leaf in jax.tree.leaves(before))


def in_blocks(problem: Problem) -> Problem:
    """The same means over blocks, each of which pulls elsewhere."""
    pull = np.random.default_rng(1).normal(size=(4, INNER))
    blocks = Blocks(jnp.asarray(pull - pull.mean(0)))
    return replace(
        problem,
        outer=lambda x, y, pull: problem.outer(x, y) + pull @ y,
        inner=lambda x, y, pull: problem.inner(x, y) + pull @ y * (1 + x.sum()),
        outer_batch=blocks,
        inner_batch=blocks,
    )


@pytest.mark.parametrize("differentiated", [1, 3])
def test_truncation_ends_where_its_bias_says(differentiated: int) -> None:
    """K differentiated steps put the first K terms of η Σ (1 - ηH)ⁱ in the place of the Hessian's inverse."""
    with jax.enable_x64(True):
        contraction = np.eye(INNER) - 0.3 * QUADRATIC.hessian
        series = 0.3 * sum(np.linalg.matrix_power(contraction, n) for n in range(differentiated))
        method = Unrolled(60, 0.3, SGD, differentiated=differentiated)
        biased = QUADRATIC.optimum([], series)[0]
        assert np.abs(biased - QUADRATIC.answer("")).max() > 1e-2
        np.testing.assert_allclose(end(method, 500, QUADRATIC.problem()), biased, atol=1e-7)


PENALISED = {
    "f2sa": lambda penalty: F2SA(0.1, 30, 0.4, penalty),
    "pbgd": lambda penalty: PBGD(0.1, 15, 0.5, penalty),
    "blocc": lambda penalty: BLOCC(0.1, 30, 0.4, 0.4, penalty),
    "bic-gaffa": lambda penalty: BiCGAFFA(0.2, 0.2, 0.2, penalty),
    "lv-hba": lambda penalty: LVHBA(0.2, 0.2, 0.2, penalty),
}


@pytest.mark.parametrize("name", PENALISED)
def test_extrapolation_removes_a_penalty_method_s_linear_bias(name: str) -> None:
    with jax.enable_x64(True):
        problem, steps = QUADRATIC.problem(), 16_000 if name == "pbgd" else 4000
        once, twice = jax.jit(jax.vmap(lambda penalty: end(PENALISED[name](penalty), steps, problem)))(
            jnp.array([20.0, 40.0])
        )
        errors = [np.abs(x - QUADRATIC.answer("")).max() for x in (once, twice, extrapolate(once, twice))]
        assert 1.8 < errors[0] / errors[1] < 2.2
        assert errors[2] < errors[1] / 5


@pytest.mark.parametrize("name", ["soba", "stocbio"])
def test_noise_averages_out(name: str) -> None:
    """On blocks, steps that fall bring the end near the answer, from where constant ones rove."""
    falling = lambda first: lambda step: first * (1 + step / 50) ** -0.6  # noqa: E731
    method = {
        "soba": SOBA(falling(0.05), falling(0.1), falling(0.1)),
        "stocbio": StocBiO(10, falling(0.3), optax.sgd(falling(0.3)), adjoint_steps=30, neumann_step=0.5),
    }[name]
    with jax.enable_x64(True):
        problem = in_blocks(QUADRATIC.problem())
        np.testing.assert_allclose(end(method, 2000, problem), QUADRATIC.answer(""), atol=0.1)


def test_aipod_follows_the_hypergradient_where_rows_are_nearly_dependent() -> None:
    """In float32, with a condition number that its square, 1e7, does not leave to normal equations."""
    generator = np.random.default_rng(2)
    left, right = (np.linalg.qr(generator.normal(size=(size, size)))[0] for size in (8, 10))
    of_inner = left @ np.concatenate([np.diag(np.geomspace(1, 1 / 3000, 8)), np.zeros((8, 2))], axis=1) @ right
    of_outer, target = of_inner @ generator.normal(size=(10, 3)), generator.normal(size=10)
    problem = Problem(
        lambda x, y: 0.5 * jnp.sum((y - target) ** 2),
        lambda x, y: 0.5 * jnp.sum((y - 1) ** 2),
        equality=lambda x, y: of_inner @ y + of_outer @ x,
    )
    solution = lambda x: 1 - np.linalg.pinv(of_inner) @ (of_inner.sum(1) + of_outer @ x)  # noqa: E731
    slope = -np.linalg.pinv(of_inner) @ of_outer
    method = AiPOD(10, 0.5, optax.sgd(1e-3))
    update = jax.jit(lambda state: method.update(problem, state))
    state = method.init(problem, jnp.ones(3), jnp.zeros(10), jax.random.key(0))
    for _ in range(50):
        x = np.asarray(state.outer, np.float64)
        state = update(state)
        np.testing.assert_allclose(state.inner, solution(x), atol=2e-2)
        expected = slope.T @ (solution(x) - target)
        np.testing.assert_allclose(state.memory["hypergradient"], expected, atol=2e-2 * np.linalg.norm(expected))


def test_adam_moves_outer_variables() -> None:
    with jax.enable_x64(True):
        method = ConjugateGradientAID(10, 0.5, optax.adam(0.03))
        np.testing.assert_allclose(end(method, 2000, QUADRATIC.problem()), QUADRATIC.answer(""), atol=1e-5)


def test_outer_variables_stay_where_they_are_projected() -> None:
    """In a box that the answer is not in, the best of the box: checked on a fine grid of the hyper-objective."""
    answer = QUADRATIC.answer("")
    low, high = np.minimum(answer, 0) + 0.2, np.maximum(answer, 0) - 0.2
    low, high = np.minimum(low, high), np.maximum(low, high)
    with jax.enable_x64(True):
        problem = replace(QUADRATIC.problem(), project_outer=lambda x: jnp.clip(x, low, high))
        found = end(Unrolled(30, 0.5, SGD), 300, problem)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 101).T, indexing="ij"), -1).reshape(-1, OUTER)
    inner = np.linalg.solve(QUADRATIC.hessian, QUADRATIC.cross @ grid.T + QUADRATIC.shift[:, None]).T
    value = 0.5 * np.sum((inner - QUADRATIC.target) ** 2, -1) + DECAY / 2 * np.sum(grid**2, -1)
    np.testing.assert_allclose(found, grid[value.argmin()], atol=(high - low).max() / 50)


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        (SOBA(), "inequality", "problem must have no inequality and no project_joint, of which SOBA makes no use"),
        (AiPOD(), "inequality", "AiPOD makes no use"),
        (AiPOD(), "", r"problem\.equality must be given"),
        (SABA(), "", r"problem\.outer_batch and problem\.inner_batch must be Blocks.*got NoneType and NoneType"),
        (LVHBA(proximity=Proximity()), "bare", r"problem\.project_joint must be given"),
    ],
)
def test_problems_that_do_not_suit_are_refused(method: Method, kind: str, message: str) -> None:
    problem = QUADRATIC.problem("equality" if kind == "bare" else kind)
    problem = replace(problem, project_joint=None) if kind == "bare" else problem
    with pytest.raises(ValueError, match=message):
        solve(problem, method, jnp.zeros(OUTER), jnp.zeros(INNER), steps=1)


def test_more_steps_differentiated_than_made_are_refused() -> None:
    with pytest.raises(ValueError, match="differentiated must be at most inner_steps = 5; got 6"):
        Unrolled(5, differentiated=6)
