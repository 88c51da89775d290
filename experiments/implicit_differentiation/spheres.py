"""How packed soft discs move when some of them grow: derivatives of a minimum of energy by a diameter.

Half of the discs have the diameter 1, the others the one that is differentiated by. Two that overlap repel each other
harmonically, ½(1 - r/σ)² with σ the mean of their diameters, in a square that is periodic. Energy does not change when
all discs move alike, so its Hessian is singular; nor does its derivative by the diameter, so Krylov methods begun at 0
find the sensitivity of least norm, in which the discs' centre stays where it is. So it does in the minimiser.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jattn import implicit

DIAMETER = 1 / 1.4
"""Of the smaller half, where derivatives are taken."""
MOVE = 1e-6
"""Of the diameter, in the central differences."""
FIRST_TIME_STEP, LARGEST_TIME_STEP = 0.1, 0.4


class State(NamedTuple):
    """Of the minimiser: its time step, how much velocities are turned to the force, steps downhill in a row."""

    positions: Float[Array, "discs 2"]
    velocities: Float[Array, "discs 2"]
    time_step: Float[Array, ""]
    turning: Float[Array, ""]
    downhill: Float[Array, ""]


class Sensitivities(NamedTuple):
    """From one start. Errors are relative, in the norm, of discs held by at least three others.

    Attributes:
      positions: at the minimum.
      differences: central differences, whose mean over all discs is 0.
      force: norm of the gradient of the energy, by record.
      unrolled, by_theorem: errors of the derivative through all steps so far, and by the implicit function theorem at
        the positions so far, by record.
      bicgstab: error of the latter at the end, by BiCGSTAB in place of MINRES.
      unstressed: the same with the forces between discs left out of the Hessian.
    """

    positions: Float[Array, "discs 2"]
    differences: Float[Array, "discs 2"]
    force: Float[Array, " records"]
    unrolled: Float[Array, " records"]
    by_theorem: Float[Array, " records"]
    bicgstab: Float[Array, ""]
    unstressed: Float[Array, ""]


def box(discs: int, packing: float) -> float:
    """Side of the square in which the discs' areas sum to `packing` of its own."""
    return float(np.sqrt(discs * np.pi / 8 * (1 + DIAMETER**2) / packing))


def overlaps(
    positions: Float[Array, "discs 2"], diameter: Float[Array, ""], side: float, held: Float[Array, "discs 2"]
) -> Float[Array, "discs discs"]:
    """1 - r/σ of every pair, and 0 for a disc with itself.

    Args:
      held: positions by which each pair's direction is taken, in place of the pair's own.
    """
    count = len(positions)
    diameters = jnp.where(jnp.arange(count) < count // 2, 1, diameter)
    sigma = (diameters[:, None] + diameters) / 2

    def apart(positions: Array) -> Array:
        away = positions[:, None] - positions
        away = away - side * jax.lax.stop_gradient(jnp.round(away / side))
        return away + 2 * side * jnp.eye(count)[..., None]

    direction = apart(held)
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return jnp.where(jnp.eye(count, dtype=bool), 0, 1 - (apart(positions) * direction).sum(axis=-1) / sigma)


def energy(positions: Float[Array, "discs 2"], diameter: Float[Array, ""], side: float) -> Float[Array, ""]:
    """½(1 - r/σ)² summed over pairs that overlap."""
    return 0.25 * (jax.nn.relu(overlaps(positions, diameter, side, positions)) ** 2).sum()


def equilibrium(side: float) -> implicit.Condition:
    """No force on any disc."""
    return implicit.Condition(jax.grad(partial(energy, side=side)), "symmetric", sign=1)


def fire(side: float, steps: int) -> implicit.Iteration:
    """Fast inertial relaxation engine (Bitzek et al., Physical Review Letters 2006), with its usual constants."""

    def start(positions: Array) -> State:
        first, turning, none = (jnp.asarray(each, positions.dtype) for each in (FIRST_TIME_STEP, 0.1, 0.0))
        return State(positions, jnp.zeros_like(positions), first, turning, none)

    def step(state: State, diameter: Array) -> State:
        def force(positions: Array) -> Array:
            return -jax.grad(energy)(positions, diameter, side)

        positions, velocities, time_step, turning, downhill = state
        velocities = velocities + time_step * force(positions)
        positions = positions + time_step * velocities
        push = force(positions)
        size = jnp.sqrt((push**2).sum() + 1e-300)
        speed = jnp.sqrt((velocities**2).sum() + 1e-300)
        falls = (push * velocities).sum() >= 0
        turned = velocities + turning * (push / size * speed - velocities)
        velocities = jnp.where(falls, turned, 0)
        downhill = jnp.where(falls, downhill + 1, 0)
        long = downhill > 5
        faster = jnp.where(long, jnp.minimum(1.1 * time_step, LARGEST_TIME_STEP), time_step)
        return State(
            positions,
            velocities,
            jnp.where(falls, faster, 0.5 * time_step),
            jnp.where(falls, jnp.where(long, 0.99 * turning, turning), 0.1),
            downhill,
        )

    return implicit.Iteration(step, steps, start=start, read=lambda state: state.positions)


def supported(positions: Float[Array, "discs 2"], side: float) -> Bool[Array, " discs"]:
    """Held by at least three others; those that are not, rattle."""
    return (overlaps(positions, jnp.asarray(DIAMETER), side, positions) > 0).sum(axis=1) >= 3


def sensitivity(
    positions: Float[Array, "discs 2"], side: float, condition: implicit.Condition, linear_solver: implicit.LinearSolver
) -> Float[Array, "discs 2"]:
    """By the implicit function theorem, as if the positions were at equilibrium."""
    adjoint = implicit.Implicit(linear_solver)
    solve = implicit.root(condition, lambda positions, diameter: positions, adjoint=adjoint, check=None)
    diameter = jnp.asarray(DIAMETER, positions.dtype)
    return jax.jvp(lambda diameter: solve(positions, diameter).value, (diameter,), (jnp.ones_like(diameter),))[1]


def sensitivities(key: Key[Array, ""], discs: int, packing: float, steps: int, records: int) -> Sensitivities:
    """From one random start. In double precision."""
    side, diameter = box(discs, packing), jnp.asarray(DIAMETER)
    whole, some = fire(side, steps), fire(side, steps // records)
    init = side * jax.random.uniform(key, (discs, 2))

    def trajectory(diameter: Array) -> Float[Array, "records discs 2"]:
        def advance(state: State, _: None) -> tuple[State, Array]:
            for_each = jax.lax.scan(lambda state, _: (some.step(state, diameter), None), state, None, length=some.steps)
            return for_each[0], for_each[0].positions

        return jax.lax.scan(advance, some.start(init), None, length=records)[1]

    points, unrolled = jax.jvp(trajectory, (diameter,), (jnp.ones_like(diameter),))
    minimum, condition = points[-1], equilibrium(side)
    above, below = jax.lax.map(lambda diameter: whole(minimum, diameter), diameter + MOVE * jnp.array([1.0, -1.0]))
    differences = (above - below) / (2 * MOVE)
    held = supported(minimum, side)[:, None]

    def error(found: Array) -> Float[Array, ""]:
        off = found - found.mean(axis=0) - (differences - differences.mean(axis=0))
        return jnp.linalg.norm(off * held) / jnp.linalg.norm(differences * held)

    def unstressed(positions: Array, diameter: Array) -> Float[Array, "discs 2"]:
        """Forces whose derivative is that of springs at rest: directions of pairs do not turn."""
        fixed = jax.lax.stop_gradient(positions)

        def of_pairs(positions: Array) -> Float[Array, ""]:
            return 0.25 * (jax.nn.relu(overlaps(positions, diameter, side, fixed)) ** 2).sum()

        return jax.grad(of_pairs)(positions)

    by_theorem = partial(sensitivity, side=side)
    minres = implicit.Minres(most=20 * discs)
    return Sensitivities(
        minimum,
        differences,
        jax.lax.map(lambda point: jnp.linalg.norm(condition.residual(point, diameter)), points),
        jax.vmap(error)(unrolled),
        jax.lax.map(lambda point: error(by_theorem(point, condition=condition, linear_solver=minres)), points),
        error(by_theorem(minimum, condition=condition, linear_solver=implicit.BiCGStab(1e-8))),
        error(by_theorem(minimum, condition=implicit.Condition(unstressed, "symmetric", sign=1), linear_solver=minres)),
    )
