"""Euclidean projections onto convex sets, exact in value and in derivatives of any order.

| set | whose function | why |
|---|---|---|
| non-negative, box, l∞ ball, l2 ball | `optax.projections` | right; jaxopt's l2 ball has a gradient of nan at 0 |
| hyperplane, half-space | `optax.projections` | right |
| simplex, l1 ball | here | optax's and jaxopt's add before they subtract: 100 numbers near 10⁶ sum to 1.54 |
| box section | here | jaxopt's bisects to its tolerance and has no forward derivative |
| affine set | here | jaxopt's has no forward derivative |
| polyhedron | here | jaxopt's is off by its tolerance of 10⁻³, and has no forward derivative |
| transport and Birkhoff polytopes | here | jaxopt's gradient is 0, and it has no forward derivative |
| second-order cone, positive semidefinite cone | here | neither library has them |

Where a projection is piecewise linear, the piece is found without derivatives and the answer is written as a formula
of that piece, which JAX differentiates. At a border between pieces there is no derivative; that of one piece is given.
A set that is empty gives nan.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jattn.implicit.quadratic_program import solve_quadratic_program

# Of Newton's method for the transport polytope; it takes 5 to 20.
STEPS = 100


def box_section(
    x: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    weights: Float[Array, " n"],
    total: Float[Array, ""],
) -> Float[Array, " n"]:
    """The point nearest to x where lower <= y <= upper and weights·y = total. Bounds may be infinite.

    It is clip(x + τ weights, lower, upper), and τ is found among the places where an entry meets a bound.

    Args:
      weights: positive.

    Raises:
      ValueError: arguments of different lengths.
    """
    _same_length(x, lower=lower, upper=upper, weights=weights)
    fixed_x, low, high, weight, sum_wanted = jax.lax.stop_gradient((x, lower, upper, weights, total))
    leaves_low, meets_high = (low - fixed_x) / weight, (high - fixed_x) / weight
    places = jnp.sort(jnp.concatenate([leaves_low, meets_high]))

    def sum_at(place: Array) -> Array:
        return weight @ jnp.clip(fixed_x + place * weight, low, high)

    # The last place whose sum does not exceed the total, by bisection: first..last always holds it.
    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        first, last = ends
        middle = (first + last + 1) // 2
        below = sum_at(places[middle]) <= sum_wanted
        return jnp.where(below, middle, first), jnp.where(below, last, middle - 1)

    ends = jnp.int32(0), jnp.int32(len(places) - 1)
    place = places[jax.lax.fori_loop(0, len(places).bit_length(), halve, ends)[0]]
    at_low, at_high = leaves_low > place, meets_high <= place
    free = ~at_low & ~at_high
    bounds = jnp.where(at_low, lower, jnp.where(at_high, upper, 0))
    # Differences from the largest free entry, as sums of large numbers lose small ones.
    reference = jnp.where(free.any(), jnp.where(free, fixed_x / weight, -jnp.inf).max(), 0)
    near = x - reference * weights
    missing = total - weights @ jnp.where(free, near, bounds)
    shift = missing / jnp.where(free.any(), (free * weights**2).sum(), 1)
    found = jnp.where(free, near + shift * weights, bounds)
    least, most = (weight * low).sum(), (weight * high).sum()
    slack = 10 * jnp.finfo(x.dtype).eps * (weight * jnp.maximum(jnp.abs(low), jnp.abs(high))).sum()
    slack = jnp.where(jnp.isfinite(slack), slack, 0)
    return jnp.where((least - slack <= sum_wanted) & (sum_wanted <= most + slack), found, jnp.nan)


def simplex(x: Float[Array, " n"], total: Float[Array, ""] | float = 1.0) -> Float[Array, " n"]:
    """The point nearest to x with entries that are not negative and sum to `total`, which is not negative."""
    none, no_bound = jnp.zeros_like(x), jnp.full_like(x, jnp.inf)
    return box_section(x, none, no_bound, jnp.ones_like(x), jnp.asarray(total, x.dtype))


def l1_ball(x: Float[Array, " n"], radius: Float[Array, ""] | float = 1.0) -> Float[Array, " n"]:
    """The point nearest to x whose absolute values sum to `radius` at most."""
    size = jnp.abs(x)
    return jnp.where(size.sum() <= radius, x, jnp.sign(x) * simplex(size, radius))


def affine_set(x: Float[Array, " n"], A: Float[Array, "m n"], b: Float[Array, " m"]) -> Float[Array, " n"]:
    """The point nearest to x where Ay = b; the rows of A are linearly independent.

    Raises:
      ValueError: A with more rows than columns, or shapes that do not fit.
    """
    if A.shape != (len(b), len(x)) or len(b) > len(x):
        raise ValueError(f"A must be (m, {len(x)}) with m = {len(b)} of at most {len(x)}; got {A.shape}")
    across, triangle = jnp.linalg.qr(A.T)
    return x - across @ (across.T @ x - jax.scipy.linalg.solve_triangular(triangle.T, b, lower=True))


def polyhedron(
    x: Float[Array, " n"],
    A: Float[Array, "m n"] | None = None,
    b: Float[Array, " m"] | None = None,
    G: Float[Array, "k n"] | None = None,
    h: Float[Array, " k"] | None = None,
) -> Float[Array, " n"]:
    """The point nearest to x where Ay = b and Gy <= h.

    Raises:
      ValueError, TypeError: as `solve_quadratic_program`.
    """
    found = solve_quadratic_program(jnp.eye(len(x), dtype=x.dtype), -x, A, b, G, h)
    return jnp.where(found.converged, found.primal, jnp.nan)


def transport_polytope(
    x: Float[Array, "n m"], rows: Float[Array, " n"], columns: Float[Array, " m"]
) -> Float[Array, "n m"]:
    """The matrix nearest to x with entries that are not negative, and these sums of rows and of columns.

    It is max(x + u 1ᵀ + 1 vᵀ, 0), and Newton's method finds potentials u and v (Blondel, Seguy and Rolet, AISTATS
    2018, arXiv 1710.06276, equation 7 with the squared norm). A step costs the cube of n + m.

    Raises:
      ValueError: shapes that do not fit.
    """
    n, m = x.shape
    if rows.shape != (n,) or columns.shape != (m,):
        raise ValueError(f"rows and columns must be ({n},) and ({m},); got {rows.shape} and {columns.shape}")
    fixed, sums = jax.lax.stop_gradient((x, jnp.concatenate([rows, columns])))
    tolerance = jnp.finfo(x.dtype).eps ** 0.75 * (1 + jnp.abs(sums).max())

    def spread(potentials: Array) -> Array:
        return potentials[:n, None] + potentials[n:]

    def marginals(plan: Array) -> Array:
        return jnp.concatenate([plan.sum(axis=1), plan.sum(axis=0)])

    def laplacian(support: Array) -> Array:
        """The derivative of the marginals by the potentials, with these entries positive."""
        pairs = jnp.block([[jnp.zeros((n, n), x.dtype), support], [support.T, jnp.zeros((m, m), x.dtype)]])
        return pairs + jnp.diag(marginals(support))

    def dual(potentials: Array) -> Array:
        return 0.5 * (jax.nn.relu(fixed + spread(potentials)) ** 2).sum() - sums @ potentials

    def slope(potentials: Array) -> Array:
        return marginals(jax.nn.relu(fixed + spread(potentials))) - sums

    def unfinished(carry: tuple[Array, Array]) -> Array:
        potentials, count = carry
        return (jnp.abs(slope(potentials)).max() > tolerance) & (count < STEPS)

    def advance(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        potentials, count = carry
        gradient = slope(potentials)
        support = (fixed + spread(potentials) > 0).astype(x.dtype)
        damping = jnp.minimum(1e-2, jnp.abs(gradient).max()) * 1e-2 + jnp.finfo(x.dtype).eps ** 0.75
        step = -jnp.linalg.solve(laplacian(support) + damping * jnp.eye(n + m, dtype=x.dtype), gradient)
        lengths = 0.5 ** jnp.arange(20, dtype=x.dtype)
        values = jax.vmap(lambda length: dual(potentials + length * step))(lengths)
        enough = values <= dual(potentials) + 1e-4 * lengths * (gradient @ step)
        # The longest that is short enough; the last steps change the dual by less than it is rounded.
        return potentials + lengths[jnp.argmax(enough)] * step, count + 1

    start = jnp.full(n + m, -fixed.mean() / 2 + sums.mean() / (n + m))
    potentials, _ = jax.lax.while_loop(unfinished, advance, (start, jnp.int32(0)))
    support = (fixed + spread(potentials) > 0).astype(x.dtype)
    # Potentials are unique up to a constant for each connected part of the support, which the plan does not see.
    inverse = jax.lax.stop_gradient(jnp.linalg.pinv(laplacian(support), hermitian=True))
    missing = jnp.concatenate([rows, columns]) - marginals(support * (x + spread(potentials)))
    plan = support * jax.nn.relu(x + spread(potentials + inverse @ missing))
    error = jnp.abs(marginals(jax.lax.stop_gradient(plan)) - sums).max()
    return jnp.where(error <= jnp.finfo(x.dtype).eps ** 0.5 * (1 + jnp.abs(sums).max()), plan, jnp.nan)


def birkhoff_polytope(x: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The doubly stochastic matrix nearest to x."""
    one = jnp.ones(len(x), x.dtype)
    return transport_polytope(x, one, one)


def second_order_cone(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """The point nearest to x whose last entry is at least the length of the others."""
    vector, height = x[:-1], x[-1]
    squares = vector @ vector
    length = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    mean = (length + height) / 2
    on_border = jnp.append(mean * vector / jnp.where(squares > 0, length, 1), mean)
    return jnp.where(length <= height, x, jnp.where(length <= -height, 0, on_border))


def positive_semidefinite_cone(x: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The positive semidefinite matrix nearest to x, or to its symmetric part.

    Derivatives exist where no eigenvalue is 0, repeated ones included.

    Raises:
      ValueError: x is not square.
    """
    if x.shape[0] != x.shape[1]:
        raise ValueError(f"x must be square; got {x.shape}")
    symmetric = (x + x.T) / 2
    return (symmetric + _absolute(symmetric)) / 2


@jax.custom_jvp
def _absolute(x: Array) -> Array:
    """|x| of a symmetric matrix: the same eigenvectors, absolute eigenvalues."""
    values, vectors = jnp.linalg.eigh(x)
    return (vectors * jnp.abs(values)) @ vectors.T


@_absolute.defjvp
def _absolute_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """From |x|² = x²: eigenvectors, which have no derivative where eigenvalues are equal, are not differentiated."""
    (x,), (change,) = primals, tangents
    absolute = _absolute(x)
    return absolute, _sylvester(absolute, x @ change + change @ x)


def _sylvester(a: Array, right: Array) -> Array:
    """The z with az + za = right, for symmetric a; 0 where a has no say."""
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(a))
    sums = values[:, None] + values
    small = jnp.abs(sums) <= jnp.finfo(a.dtype).eps * jnp.abs(values).max(initial=0) * len(a)

    def solve(_, right: Array) -> Array:
        return vectors @ (jnp.where(small, 0, vectors.T @ right @ vectors) / jnp.where(small, 1, sums)) @ vectors.T

    return jax.lax.custom_linear_solve(lambda z: a @ z + z @ a, right, solve, symmetric=True)


def _same_length(x: Array, **others: Array) -> None:
    for name, each in others.items():
        if each.shape != x.shape:
            raise ValueError(f"{name} must be of the shape of x, {x.shape}; got {each.shape}")
