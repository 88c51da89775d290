"""Cases for the tests of `kernels.compile`, named by their path."""

import os
import time

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


def double(rows: int = 256, dtype: str = "float32"):
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def function(x):
        tile = pl.BlockSpec((128, 128), lambda i: (i, 0))
        return pl.pallas_call(kernel, out_shape=x, grid=(rows // 128,), in_specs=[tile], out_specs=tile, name="double")(
            x
        )

    return function, (jax.ShapeDtypeStruct((rows, 128), jnp.dtype(dtype)),), rows * 128


def product(size: int = 64):
    def kernel(x_ref, y_ref, z_ref):
        z_ref[...] = jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

    def function(x, y):
        z = jax.ShapeDtypeStruct((size, size), jnp.float32)
        return pl.pallas_call(kernel, out_shape=z, compiler_params=triton.CompilerParams(num_warps=4), name="product")(
            x, y
        )

    return function, (jax.ShapeDtypeStruct((size, size), jnp.float16),) * 2, 2 * size**3


def hoard():
    """More VMEM than a v5e lets a kernel have: one block of 64 MiB."""

    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] + 1

    x = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    return lambda x: pl.pallas_call(kernel, out_shape=x)(x), (x,), None


def no_kernel():
    return lambda x: x + 1, (jax.ShapeDtypeStruct((8, 128), jnp.float32),), None


def sleep():
    time.sleep(600)


def abort():
    os.abort()


def broken():
    raise KeyError("no such tile")
