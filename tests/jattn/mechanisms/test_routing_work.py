"""How the work of routing attention grows with length, counted in its traced program."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from jattn.mechanisms import routing_attention, routing_lists

HEADS, DIM = 2, 4


def multiply_adds(length: int) -> int:
    """Of routing and attention with √length clusters of √length tokens."""
    clusters = round(length**0.5)
    centroids = jnp.zeros((HEADS, clusters, DIM))

    def attend(query: jax.Array, value: jax.Array) -> jax.Array:
        lists = routing_lists(query, centroids, length // clusters)
        return routing_attention(query, query, value, lists, implementation="reference")

    shape = jax.ShapeDtypeStruct((1, length, HEADS, DIM), jnp.float32)
    program = jax.make_jaxpr(attend)(shape, shape).jaxpr
    return products(dce_jaxpr(program, [True])[0])  # what no output needs is not run


def products(jaxpr: Any) -> int:
    """Of the matrix products of a program without loops."""
    total = 0
    for equation in jaxpr.eqns:
        assert equation.primitive.name not in ("scan", "while", "cond"), "how often is not in the shapes"
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * summed
        total += sum(products(inner) for inner in jaxprs_in_params(equation.params))
    return total


def test_work_grows_as_length_to_the_power_of_one_and_a_half() -> None:
    """Four times the length, with twice as many clusters twice as long: exactly eight times the work."""
    one, four = multiply_adds(256), multiply_adds(1024)
    # Affinities to 16 centroids, then scores and sums of values in 16 lists of 16.
    assert one == HEADS * DIM * (256 * 16 + 2 * 16 * 16 * 16)
    assert four == 8 * one
