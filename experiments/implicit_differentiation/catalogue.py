"""Every row of the paper's catalogue on one instance: the solution's derivative against central differences.

Matrices are those of the diabetes data: f(x, b) = ½ xᵀGx - bᵀx + ½ penalty ‖x‖² with G the correlations of its first
measurements, and b their correlation with the target. A wrong condition leaves a term out, and is not to pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jattn import implicit
from jattn.data.tables import diabetes

SIZE = 4
PENALTY = 0.5
STEP = 1e-5
"""Of the central differences."""


class Row(NamedTuple):
    """An instance.

    Attributes:
      solver: outer variables -> inner variables, to the last digits.
      condition, wrong: of inner variables and the outer ones; a term is missing from the second.
      outer: where derivatives are taken; a flat vector.
    """

    solver: Callable[[Array], Any]
    condition: implicit.Condition
    wrong: implicit.Condition
    outer: Float[Array, " outer"]


def errors(row: Row) -> tuple[float, float]:
    """The Jacobian's largest error over the largest entry of the differences: by the condition, and by the wrong one.

    In double precision.
    """

    moves = STEP * jnp.eye(len(row.outer))

    def value(outer: Array) -> Float[Array, " inner"]:
        return ravel_pytree(row.solver(outer))[0]

    @jax.jit
    def found(outer: Array) -> tuple[Array, ...]:
        above, below = (jax.lax.map(lambda move, sign=sign: value(outer + sign * move), moves) for sign in (1, -1))
        differences, solution = (above - below).T / (2 * STEP), row.solver(outer)

        def jacobian(condition: implicit.Condition) -> Float[Array, "inner outer"]:
            adjoint = implicit.Implicit(implicit.Dense())
            solve = implicit.root(condition, lambda init, outer: init, adjoint=adjoint, check=None)
            return jax.jacfwd(lambda outer: ravel_pytree(solve(solution, outer).value)[0])(outer)

        jacobians = (jacobian(each) for each in (row.condition, row.wrong))
        return tuple(jnp.abs(each - differences).max() / jnp.abs(differences).max() for each in jacobians)

    right, wrong = map(float, found(row.outer))
    return right, wrong


def matrices() -> tuple[Float[Array, "size size"], Float[Array, " size"]]:
    """G and b."""
    table = diabetes()
    together = np.corrcoef(table.features[:, -SIZE:].T, table.target)
    return jnp.asarray(together[:-1, :-1]), jnp.asarray(together[:-1, -1])


def rows() -> dict[str, Callable[[], Row]]:
    """What makes each instance, by the names in `config.ROWS`."""
    return {
        "stationary": lambda: _smooth(implicit.stationary),
        "Newton": lambda: _smooth(lambda f: implicit.newton(implicit.stationary(f))),
        "fixed point": lambda: _smooth(lambda f: implicit.fixed(lambda x, b: x - 0.1 * jax.grad(f)(x, b))),
        "KKT": _kkt,
        "KKT of a quadratic program": _kkt_of_matrices,
        "projected gradient": lambda: _of_map(
            lambda f: implicit.projected_gradient(f, jaxopt.projection.projection_box, 0.3),
            (jnp.full(SIZE, -0.05), jnp.full(SIZE, 0.2)),
        ),
        "proximal gradient": lambda: _of_map(
            lambda f: implicit.proximal_gradient(f, jaxopt.prox.prox_lasso, 0.3), jnp.asarray(0.2)
        ),
        "block proximal gradient": _blocks,
        "mirror descent": lambda: _of_map(
            lambda f: implicit.mirror_descent(f, lambda y, _: jax.nn.softmax(y), jnp.log, 0.5), None
        ),
        "conic": _conic,
        "isotonic regression": _isotonic,
        "optimal transport": _transport,
    }


def _objective(penalty: float) -> Callable[[Array, Array], Float[Array, ""]]:
    correlations, _ = matrices()
    return lambda x, b: 0.5 * x @ correlations @ x - b @ x + 0.5 * penalty * (x**2).sum()


def _long(condition: implicit.Condition, start: Any) -> Callable[[Array], Any]:
    """A thousand steps of a fixed point."""

    def solver(outer: Array) -> Any:
        def step(_: Array, inner: Any) -> Any:
            return jax.tree.map(jnp.add, inner, condition.residual(inner, outer))

        return jax.lax.fori_loop(0, 1000, step, start)

    return solver


def _closed(condition: implicit.Condition, *rest: Any) -> implicit.Condition:
    """The condition with all outer variables but the first given."""
    return implicit.Condition(
        lambda inner, outer: condition.residual(inner, outer, *rest), condition.structure, condition.sign
    )


def _smooth(make: Callable[[Any], implicit.Condition]) -> Row:
    """f, whose solution is that of a linear system; the penalty is what the wrong condition lacks."""
    correlations, b = matrices()
    return Row(
        lambda b: jnp.linalg.solve(correlations + PENALTY * jnp.eye(SIZE), b),
        make(_objective(PENALTY)),
        make(_objective(0.0)),
        b,
    )


def _of_map(make: Callable[[Any], implicit.Condition], rest: Any) -> Row:
    """f with something that is not smooth, by its own fixed point; again the wrong condition lacks the penalty."""
    right, wrong = (_closed(make(_objective(penalty)), rest) for penalty in (PENALTY, 0.0))
    return Row(_long(right, jnp.full(SIZE, 1 / SIZE)), right, wrong, matrices()[1])


def _blocks() -> Row:
    """A lasso of two weights beside two that are not negative."""

    def make(penalty: float) -> implicit.Condition:
        whole = _objective(penalty)
        proximals = (jaxopt.prox.prox_lasso, lambda x, _, __: jnp.maximum(x, 0))
        condition = implicit.block_proximal_gradient(
            lambda inner, b: whole(jnp.concatenate(inner), b), proximals, (0.2, 0.4)
        )
        return _closed(condition, (jnp.asarray(0.15), None))

    half = jnp.zeros(SIZE // 2)
    return Row(_long(make(PENALTY), (half, half)), make(PENALTY), make(0.0), matrices()[1])


LIMIT, TOTAL = 0.15, 0.3
"""Of every weight, and of all together."""


def _program(b: Array) -> implicit.PrimalDual:
    """f with weights that sum to `TOTAL` and are at most `LIMIT`."""
    Q, _ = matrices()
    found = implicit.solve_quadratic_program(
        Q + PENALTY * jnp.eye(SIZE), -b, jnp.ones((1, SIZE)), jnp.full(1, TOTAL), jnp.eye(SIZE), jnp.full(SIZE, LIMIT)
    )
    return implicit.PrimalDual(found.primal, found.equality, found.inequality)


def _kkt() -> Row:
    def make(penalty: float) -> implicit.Condition:
        return implicit.kkt(_objective(penalty), lambda x, _: x.sum(keepdims=True) - TOTAL, lambda x, _: x - LIMIT)

    return Row(_program, make(PENALTY), make(0.0), matrices()[1])


def _kkt_of_matrices() -> Row:
    Q, b = matrices()
    program = implicit.kkt_of_quadratic_program()
    constraints = (jnp.ones((1, SIZE)), jnp.full(1, TOTAL)), (jnp.eye(SIZE), jnp.full(SIZE, LIMIT))

    def make(penalty: float) -> implicit.Condition:
        matrix = Q + penalty * jnp.eye(SIZE)
        return implicit.Condition(lambda inner, b: program.residual(inner, (matrix, -b), *constraints), "symmetric", 1)

    return Row(_program, make(PENALTY), make(0.0), b)


def _conic() -> Row:
    """The point of a line nearest to θ: the least t with ‖x - θ‖ ≤ t and aᵀx = 1. The wrong condition
    has half of the point in place of its projection."""
    a, theta = jnp.array([1.0, 2.0]), matrices()[1][:2]
    A = jnp.array([[0.0, 1, 2], [0, -1, 0], [0, 0, -1], [-1, 0, 0]])
    costs = jnp.array([1.0, 0, 0])

    def solver(theta: Array) -> implicit.ConeSolution:
        x = theta + a * (1 - a @ theta) / (a @ a)
        distance = jnp.linalg.norm(x - theta)
        slack = jnp.concatenate([jnp.zeros(1), x - theta, distance[None]])
        towards = -(x - theta) / distance
        dual = jnp.concatenate([(towards @ a / (a @ a))[None], towards, jnp.ones(1)])
        return implicit.ConeSolution(jnp.concatenate([distance[None], x]), dual - slack)

    def make(project: Callable[[Array], Array]) -> implicit.Condition:
        whole = implicit.conic(lambda point: jnp.concatenate([point[:1], project(point[1:])]))

        def residual(inner: implicit.ConeSolution, theta: Array) -> implicit.ConeSolution:
            b = jnp.concatenate([jnp.ones(1), -theta, jnp.zeros(1)])
            return whole.residual(inner, A, b, costs)

        return implicit.Condition(residual)

    return Row(solver, make(implicit.projections.second_order_cone), make(lambda point: point / 2), theta)


def _isotonic() -> Row:
    """The nearest numbers to b that do not fall. The wrong condition knows of no order."""
    falls, b = jnp.eye(SIZE)[:-1] - jnp.eye(SIZE)[1:], matrices()[1]

    def distance(x: Array, b: Array) -> Float[Array, ""]:
        return 0.5 * ((x - b) ** 2).sum()

    def solver(b: Array) -> implicit.PrimalDual:
        found = implicit.solve_quadratic_program(jnp.eye(SIZE), -b, None, None, falls, jnp.zeros(SIZE - 1))
        return implicit.PrimalDual(found.primal, None, found.inequality)

    def free(inner: implicit.PrimalDual, b: Array) -> implicit.PrimalDual:
        return implicit.PrimalDual(jax.grad(distance)(inner.primal, b), None, -jnp.asarray(inner.inequality))

    right = implicit.kkt(distance, None, lambda x, _: falls @ x)
    return Row(solver, right, implicit.Condition(free, "symmetric", 1), b)


def _transport() -> Row:
    """Entropic transport between weights of eᵇ and even ones, by its dual: the fixed point of Sinkhorn's steps.

    Potentials of one side, less the first of them. The wrong condition has half of the weights' logarithms.
    """
    costs, regularisation = 1 - matrices()[0], 0.5

    def make(weighted: float) -> implicit.Condition:
        def map(potential: Array, b: Array) -> Array:
            other = -regularisation * jax.nn.logsumexp((potential[:, None] - costs) / regularisation, axis=0)
            after = -regularisation * jax.nn.logsumexp((other - costs) / regularisation, axis=1)
            after = after + regularisation * weighted * jax.nn.log_softmax(b)
            return after - after[0]

        return implicit.fixed(map)

    right = make(1.0)
    return Row(_long(right, jnp.zeros(SIZE)), right, make(0.5), matrices()[1])
