"""One of several processes that hold a sequence together; run with address, number of processes and own number.

Prints the errors of the shards that it holds as JSON.
"""

import json
import sys
from typing import Any

import jax
import numpy as np
from arrays import TILES, draw, forward_and_gradient, single
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jattn.distributed import sequence_parallel_attention


def shard_error(found: jax.Array, truth: np.ndarray) -> float:
    largest = np.abs(truth).max()
    return max(
        float(np.abs(np.asarray(shard.data) - truth[shard.index]).max() / largest) for shard in found.addressable_shards
    )


def main(address: str, processes: int, number: int) -> dict[str, Any]:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=processes, process_id=number, initialization_timeout=60)
    mesh = jax.make_mesh((2 * processes,), ("ring",), axis_types=(AxisType.Auto,))
    placed = NamedSharding(mesh, PartitionSpec(None, "ring"))
    arrays = [np.asarray(array) for array in draw(length=64)]
    spread = [jax.make_array_from_callback(array.shape, placed, lambda at, a=array: a[at]) for array in arrays]

    def ring(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sequence_parallel_attention(
            *arrays, mesh=mesh, axis_name="ring", causal=True, return_lse=True, tiles=TILES
        )

    found = jax.tree.leaves(jax.jit(forward_and_gradient(ring))(*spread))
    truth = jax.tree.leaves(jax.jit(forward_and_gradient(single(causal=True)))(*arrays))
    names = ("output", "lse", "query", "key", "value")
    errors = {n: shard_error(f, np.asarray(t)) for n, f, t in zip(names, found, truth, strict=True)}
    return {"devices": jax.device_count(), "here": len(found[0].addressable_shards), "errors": errors}


if __name__ == "__main__":
    # Gloo writes to the same stream and does not end its lines.
    print("\n" + json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
