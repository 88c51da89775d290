"""No derivative, however deep, makes anything of length squared: from the compiled program's own account."""

import jax
import jax.numpy as jnp
import pytest

import kernels
from kernels import masks

LENGTH, HEADS, WIDTH = 8192, 2, 64
QUERY_BYTES = LENGTH * HEADS * WIDTH * 4


def temporaries(function, *arguments: jax.ShapeDtypeStruct) -> int:
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


ARRAYS = [jax.ShapeDtypeStruct((1, LENGTH, HEADS, WIDTH), jnp.float32)] * 3


def loss(query, key, value):
    output, found = kernels.attention(query, key, value, mask=masks.Causal("start"), statistics=("entropy",))
    return (output**2).sum() + found.entropy.sum()


def plain(query, key, value):
    return (kernels.attention(query, key, value, mask=masks.Causal("start")) ** 2).sum()


gradient = jax.grad(plain, (0, 1, 2))


@pytest.mark.parametrize(
    ("name", "function", "limit"),
    [
        ("forward and backward", gradient, 10),
        ("jvp", lambda *a: jax.jvp(plain, a, a), 10),
        ("jvp of gradient", lambda *a: jax.jvp(gradient, a, a), 20),
        ("gradient of gradient", jax.grad(lambda *a: sum(jnp.vdot(x, x) for x in gradient(*a)), (0, 1, 2)), 24),
        ("gradient with entropy", jax.grad(loss, (0, 1, 2)), 12),
    ],
)
def test_linear(name: str, function, limit: float) -> None:
    assert temporaries(function, *ARRAYS) <= limit * QUERY_BYTES
    # One float32 array of length squared for one head alone would be 32 times the query.


def test_gradient_of_a_bias_is_as_large_as_the_bias() -> None:
    bias = jax.ShapeDtypeStruct((HEADS, 1, LENGTH), jnp.float32)

    def with_bias(query, key, value, bias):
        return (kernels.attention(query, key, value, bias=bias) ** 2).sum()

    assert temporaries(jax.grad(with_bias, (0, 1, 2, 3)), *ARRAYS, bias) <= 10 * QUERY_BYTES
