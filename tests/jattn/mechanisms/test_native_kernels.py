"""Mechanisms on the kernels of a GPU and of a TPU, in Pallas' interpreter, against the reference in the same place."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jattn.mechanisms.bi_level_routing import attention_over_regions
from jattn.mechanisms.causal_routing import causal_routing_attention
from jattn.mechanisms.landmark import landmark_attention
from jattn.mechanisms.local import local_attention
from jattn.mechanisms.mixture_of_heads import sparse_heads
from jattn.mechanisms.routing import routing_attention

LENGTH, HEADS, WIDTH = 36, 4, 8
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
Attend = Callable[..., jax.Array]


def lists(seed: int, clusters: int = 3, window: int = 10) -> jax.Array:
    """Of each head, ascending."""
    drawn = np.random.default_rng(seed).random((2, HEADS, clusters, LENGTH))
    return jnp.asarray(np.sort(np.argsort(drawn, axis=-1)[..., :window], axis=-1))


def over_regions(query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
    """An image of 6 x 6 in nine regions of four tokens, each of which reads three, with gates."""
    rng = np.random.default_rng(5)
    picked = jnp.asarray(np.argsort(rng.random((2, 9, 9)), axis=-1)[..., :3])
    gates = jnp.asarray(rng.normal(size=(2, 9, 3)), jnp.float32)
    maps = (each.reshape(2, 6, 6, HEADS * WIDTH) for each in (query, key, value))
    return attention_over_regions(*maps, picked, heads=HEADS, log_gates=gates, **options)


MECHANISMS: dict[str, Attend] = {
    "heads of a mixture": lambda *given, **options: sparse_heads(
        *given, jnp.asarray(np.random.default_rng(1).random((2, LENGTH, HEADS)) < 0.5), **options
    ),
    "clusters that share query and key": lambda *given, **options: routing_attention(
        *given, lists(2), exclude_self=True, **options
    ),
    "clusters of queries and of keys": lambda *given, **options: routing_attention(
        *given, lists(2), lists(3, window=12), **options
    ),
    "the last of a cluster": lambda *given, **options: causal_routing_attention(
        *given,
        jnp.asarray(np.random.default_rng(4).integers(0, 3, (2, HEADS, LENGTH))),
        5,
        exclude_self=True,
        **options,
    ),
    "local heads": lambda *given, **options: local_attention(*given, 8, 8, **options),
    "landmarks": lambda *given, **options: landmark_attention(*given, 9, **options),
    "listed regions": over_regions,
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_lowers_for_hardware_that_is_not_there(name: str) -> None:
    """Values and gradients, as a platform's compiler is given them."""
    attend = MECHANISMS[name]

    def run(*given: jax.Array) -> Any:
        return attend(*given), jax.grad(lambda *given: jnp.sin(attend(*given)).sum(), (0, 1, 2))(*given)

    shapes = [jax.ShapeDtypeStruct((2, LENGTH, HEADS, WIDTH), jnp.float32)] * 3
    allowed = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    text = export.export(jax.jit(run), platforms=("cuda", "tpu"), disabled_checks=allowed)(*shapes).mlir_module()
    native = "__gpu$xla.gpu.triton" in text, "tpu_custom_call" in text
    # With no implementation named, regions of four tokens, which are no whole tiles, run as the tiled loop, and few
    # tokens with landmarks all at once.
    assert native == 2 * (name not in ("listed regions", "landmarks"),)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["gpu", "tpu"])
@pytest.mark.parametrize("name", MECHANISMS)
def test_values_and_gradients(name: str, implementation: str) -> None:
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.normal(size=(2, LENGTH, HEADS, WIDTH)), jnp.float32) for _ in range(3)]

    def both(implementation: str) -> Any:
        attend = partial(MECHANISMS[name], implementation=implementation)

        def run(*given: jax.Array) -> Any:
            return attend(*given), jax.grad(lambda *given: jnp.sin(attend(*given)).sum(), (0, 1, 2))(*given)

        return jax.jit(run, compiler_options=QUICKLY)(*given)

    have, want = both(implementation), both("reference")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), have, want)
