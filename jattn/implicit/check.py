"""What is said of derivatives that are not to be trusted."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

Check = str | None
"""What to do: "warn", "raise" an `ImplicitError`, "poison", to make it not-a-number, or nothing."""

WEAKLY_ACTIVE = (
    "an inequality is weakly active, or a kink near, or may be, where there is no derivative: less its margin"
)


class ImplicitWarning(UserWarning):
    """A derivative of a solution is worse than was asked for."""


class ImplicitError(Exception):
    """A derivative of a solution is worse than was asked for. What JAX raises has its text."""


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def factor(check: Check, what: str, value: Float[Array, ""], limit: ArrayLike) -> Float[Array, ""]:
    """1, for a derivative to be multiplied by; if not value ≤ limit, what `check` asks for happens first.

    Multiplied, because nothing else can be done to what is linear and differentiated again.
    """
    if check is None:
        return jnp.ones_like(value)
    if check == "poison":
        return jnp.where(value <= limit, 1, jnp.nan).astype(value.dtype)
    return _said(check, what)(value, jnp.asarray(limit, value.dtype)).astype(value.dtype)


@factor.defjvp
def _(check: Check, what: str, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    made = factor(check, what, *primals)
    return made, jnp.zeros_like(made)


def _said(check: Check, what: str) -> Callable[[Array, Array], Array]:
    """(values, limits) -> ones in single precision, after the host was called if any value is not within its limit.

    A call of the host costs more than a small problem. A condition of a batch would be one for each of its members,
    and so the call be made for all; here it is one condition for the whole batch.
    """

    @jax.custom_batching.custom_vmap
    def said(values: Array, limits: Array) -> Array:
        # In single precision, as callbacks may run without double.
        ones = jax.ShapeDtypeStruct(values.shape, jnp.float32)

        def say(values: Array, limits: Array) -> Array:
            return jax.pure_callback(partial(_say, check, what), ones, values, limits)

        def say_nothing(values: Array, limits: Array) -> Array:
            return jnp.ones_like(values, jnp.float32)

        return jax.lax.cond((values <= limits).all(), say_nothing, say, values, limits)

    @said.def_vmap
    def _(size: int, batched: list[bool], values: Array, limits: Array) -> tuple[Array, bool]:
        spread = [
            each if has else jnp.broadcast_to(each, (size, *each.shape))
            for each, has in zip((values, limits), batched, strict=True)
        ]
        return said(*spread), True

    return said


def watched(check: Check, what: str, tree: Any, value: Float[Array, ""], limit: ArrayLike) -> Any:
    """`tree`, whose derivatives are multiplied by `factor` of the rest; of itself nothing is said."""

    @jax.custom_jvp
    def same(tree: Any, value: Array, limit: Array) -> Any:
        return tree

    @same.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        trusted = factor(check, what, *primals[1:])
        return same(*primals), jax.tree.map(lambda each: each * trusted, tangents[0])

    return same(tree, value, jnp.asarray(limit, value.dtype))


def checked_policy(check: Check) -> Check:
    """`check`, if it is one.

    Raises:
      ValueError: it is none.
    """
    if check not in ("warn", "raise", "poison", None):
        raise ValueError(f"check must be 'warn', 'raise', 'poison' or None; got {check!r}")
    return check


def _say(check: Check, what: str, value: ArrayLike, limit: ArrayLike) -> np.ndarray:
    value = np.asarray(value)
    bad = ~(value <= np.asarray(limit))
    if bad.any():
        worst = np.max(value) if np.isfinite(value).all() else np.nan
        message = f"{what} is {worst:.3g}, over {float(np.max(limit)):.3g}"
        message += f", in {bad.sum()} of {bad.size}" if bad.size > 1 else ""
        if check == "raise":
            raise ImplicitError(message)
        warnings.warn(message, ImplicitWarning, stacklevel=2)
    return np.ones(value.shape, np.float32)
