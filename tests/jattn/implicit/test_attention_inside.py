"""An inner problem with attention over 2,048 tokens in it: implicit and unrolled hypergradients, and their memory.

Tokens in equilibrium: x = tokens + ½ attention(x Wq, x Wk, x) Wo, found by steps of that map (Bai, Kolter and Koltun
2019, arXiv 1909.01377). Outer variables are the weights.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
from jattn import implicit

WIDTH, STEPS = 8, 14
LENGTH = 2048


def balance(states: jax.Array, weights: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """One step; it contracts, as the weights are small."""
    query, key = (jnp.einsum("nc,cd->nd", states, weights[name]) for name in ("query", "key"))
    heads = [each[None, :, None] for each in (query, key, states)]
    read = kernels.attention(*heads, mask=kernels.masks.Causal("start"), implementation="xla")
    return tokens + 0.5 * read[0, :, 0] @ weights["output"]


def loss(adjoint: Any, steps: int, weights: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    solve = implicit.fixed_point(
        balance, implicit.Iteration(balance, steps), adjoint=adjoint, check="raise", tolerance=1e-4
    )
    return (solve(tokens, weights, tokens).value[-256:] ** 3).mean()


def arguments(length: int) -> tuple[dict[str, jax.Array], jax.Array]:
    rng = np.random.default_rng(0)
    weights = {name: 0.2 * rng.standard_normal((WIDTH, WIDTH), np.float32) for name in ("query", "key", "output")}
    return jax.tree.map(jnp.asarray, weights), jnp.asarray(rng.standard_normal((length, WIDTH), np.float32))


IMPLICIT = implicit.Implicit(implicit.Gmres(1e-5, restart=10))


def test_both_hypergradients_are_equal() -> None:
    given = arguments(LENGTH)
    exact, unrolled = (
        jax.jit(jax.grad(partial(loss, each, STEPS)))(*given) for each in (IMPLICIT, implicit.Unrolled())
    )
    for name in exact:
        np.testing.assert_allclose(exact[name], unrolled[name], rtol=2e-3, atol=2e-6, err_msg=name)
        assert np.abs(exact[name]).max() > 1e-4


def temporaries(adjoint: Any, steps: int, length: int) -> int:
    gradient = jax.jit(jax.grad(partial(loss, adjoint, steps)))
    shapes = jax.eval_shape(lambda: arguments(length))
    return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_is_linear_in_tokens_and_flat_in_steps() -> None:
    short, long = (temporaries(IMPLICIT, STEPS, length) for length in (LENGTH, 2 * LENGTH))
    assert long < 2.1 * short
    assert long < 0.2 * (2 * LENGTH) ** 2 * 4
    assert temporaries(IMPLICIT, 10 * STEPS, LENGTH) == short
    assert temporaries(implicit.Unrolled(), 10 * STEPS, LENGTH) > 4 * temporaries(implicit.Unrolled(), STEPS, LENGTH)
