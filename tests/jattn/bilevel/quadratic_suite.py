"""Quadratic problems with known answers, and the settings with which every method reaches them."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jattn.bilevel import (
    BLOCC,
    BOME,
    BVFSM,
    F2SA,
    LVHBA,
    PBGD,
    SABA,
    SOBA,
    BiCGAFFA,
    Blocks,
    ConjugateGradientAID,
    Method,
    NeumannAID,
    Problem,
    StocBiO,
    Unrolled,
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


def end(method: Method, steps: int, problem: Problem) -> jax.Array:
    key = jax.random.key(0)
    run = jax.jit(lambda x, y: solve(problem, method, x, y, steps=steps, key=key, record_every=steps).state.outer)
    return run(jnp.zeros(OUTER), jnp.zeros(INNER))


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
