"""One batch over many devices: each takes its part, and what they find is averaged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXIS = "batch"


def batch_mesh(devices: int) -> Mesh | None:
    """A mesh of the first so many devices, of all processes, along which batches are cut; None for one device.

    Raises:
      ValueError: there are not as many.
    """
    there = jax.devices()
    if not 1 <= devices <= len(there):
        raise ValueError(f"devices must be from 1 to the {len(there)} that are there; got {devices}")
    if devices == 1:
        return None
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=there[:devices])


def mean_over_batch(
    function: Callable[[Any, PyTree], PyTree], mesh: Mesh | AbstractMesh
) -> Callable[[Any, PyTree], PyTree]:
    """function(shared, batch), each device on its part of the batch; floating results are their mean over devices.

    So it is the function itself if that averages over the batch: a loss, its gradient, running means. Other results,
    like the counter of a random stream, must be the same on all devices, and random numbers drawn from what is shared
    are.

    Args:
      function: of arrays that all devices have whole, and of a batch whose arrays have the batch axis first.
      mesh: of `batch_mesh`, or an abstract one with its axis.

    Raises:
      ValueError: when called with a batch that the devices do not divide.
    """
    count = mesh.shape[AXIS]

    def mean(found: jax.Array) -> jax.Array:
        return jax.lax.pmean(found, AXIS) if jnp.issubdtype(found.dtype, jnp.inexact) else found

    def part(shared: Any, batch: PyTree) -> PyTree:
        return jax.tree.map(mean, function(shared, batch))

    whole, cut = PartitionSpec(), PartitionSpec(AXIS)
    # Kernels of Pallas keep no account of what varies over devices.
    over = jax.shard_map(part, mesh=mesh, in_specs=(whole, cut), out_specs=whole, check_vma=False)

    def call(shared: Any, batch: PyTree) -> PyTree:
        for size in {array.shape[0] for array in jax.tree.leaves(batch)}:
            if size % count:
                raise ValueError(f"the batch must be a multiple of the {count} devices; got {size}")
        return over(shared, batch)

    return call


def on_every_device(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays as each device of the mesh has them whole."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def on_one_device(tree: PyTree) -> PyTree:
    """Arrays that every device has whole, as this process' first device has them: no copy."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)
