"""Every method reaches the known answers of quadratic problems; each method's bias is what its theory says."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_suite import INNER, LARGE, OUTER, QUADRATIC, SGD, UNCONSTRAINED, end, in_blocks

from jattn.bilevel import (
    BLOCC,
    F2SA,
    LVHBA,
    PBGD,
    SABA,
    SOBA,
    AiPOD,
    BiCGAFFA,
    ConjugateGradientAID,
    Method,
    Problem,
    Proximity,
    StocBiO,
    Unrolled,
    extrapolate,
    growing_penalty,
    solve,
)

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
