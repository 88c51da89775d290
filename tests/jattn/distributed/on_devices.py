"""A program on eight virtual devices; run with the name of a part, it prints what it measured as JSON."""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from arrays import TILES, draw, error, forward_and_gradient, gradient, segment_ids, single
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jattn.distributed import ring_attention, sequence_parallel_attention


def mesh_of(**axes: int) -> Mesh:
    count = 1
    for size in axes.values():
        count *= size
    shape, names = tuple(axes.values()), tuple(axes)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[:count])


def parallel(mesh: Mesh, **options: Any) -> Callable[..., Any]:
    return partial(
        sequence_parallel_attention, mesh=mesh, axis_name="ring", return_lse=True, **{"tiles": TILES, **options}
    )


def both(function: Callable[..., Any], truth: Callable[..., Any], arrays: list[jax.Array]) -> dict[str, float]:
    """Errors of the forward pass and of the gradient."""
    (found, slopes), (want, true_slopes) = (jax.jit(forward_and_gradient(f))(*arrays) for f in (function, truth))
    return {"forward": error(found, want), "gradient": error(slopes, true_slopes)}


def derivatives() -> dict[str, Any]:
    arrays = draw()
    directions = [jnp.cos(array) for array in arrays]

    def all_of(function: Callable[..., Any]) -> dict[str, Any]:
        slope = gradient(function)
        squares = jax.grad(lambda *a: sum((g**2).sum() for g in slope(*a)), (0, 1, 2))
        forward, along = jax.jvp(function, arrays, directions)
        moved, change = jax.jvp(slope, arrays, directions)
        return {
            "forward": forward,
            "gradient": moved,
            "jvp": along,
            "jvp of gradient": change,
            "gradient of gradient": squares(*arrays),
        }

    found = jax.jit(lambda: all_of(parallel(mesh_of(ring=8), causal=True)))()
    truth = jax.jit(lambda: all_of(single(causal=True)))()
    return {name: error(found[name], truth[name]) for name in truth}


def variants() -> dict[str, Any]:
    ring, ids = mesh_of(ring=8), segment_ids(128)
    options = {"softcap": 2.0, "scale": 0.5}
    return {
        "plain, softcap, segments": both(
            parallel(ring, segment_ids=ids, **options), single(segments=ids, **options), draw()
        ),
        "causal, segments": both(
            parallel(ring, causal=True, segment_ids=ids), single(causal=True, segments=ids), draw()
        ),
        "one key a device": both(parallel(ring), single(), draw(length=8)),
        "one device": both(parallel(mesh_of(ring=1), causal=True), single(causal=True), draw(length=34)),
        "batch and heads cut": both(
            parallel(mesh_of(data=2, ring=2, model=2), causal=True, batch_axis="data", heads_axis="model"),
            single(causal=True),
            draw(),
        ),
    }


def narrow() -> dict[str, Any]:
    arrays = draw(dtype=jnp.bfloat16)
    return both(parallel(mesh_of(ring=8), causal=True), single(causal=True), arrays)


def inside() -> dict[str, Any]:
    """`ring_attention` in a shard_map of one's own: on an explicit mesh, with more keys than queries, and mapped."""
    mesh = jax.make_mesh((8,), ("ring",), axis_types=(AxisType.Explicit,))
    spec = PartitionSpec(None, "ring")
    arrays = draw(length=32, key_length=64)
    placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array in arrays]

    def shard(*arrays: jax.Array) -> Any:
        return jax.vmap(partial(ring_attention, axis_name="ring", return_lse=True))(*arrays)

    specs = {"in_specs": (spec,) * 3, "out_specs": (spec, PartitionSpec(None, None, "ring"))}
    answers = jax.jit(jax.shard_map(shard, mesh=mesh, **specs, check_vma=False))(*placed)
    try:
        jax.eval_shape(jax.shard_map(shard, mesh=mesh, **specs), *placed)
        complaint = "none"
    except ValueError as raised:
        complaint = str(raised)
    return {"forward": error(answers, single()(*arrays)), "complaint": complaint}


def memory() -> dict[str, Any]:
    """Bytes of temporary arrays on each device in the gradient, by (devices, length of a shard)."""

    def bytes_of(devices: int, length: int) -> int:
        mesh = mesh_of(ring=devices)
        placed = NamedSharding(mesh, PartitionSpec(None, "ring"))
        arrays = [jax.ShapeDtypeStruct((1, devices * length, 1, 16), jnp.float32, sharding=placed)] * 3
        slope = gradient(parallel(mesh, causal=True, arranged=True, tiles=None))
        found = jax.jit(slope).lower(*arrays).compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes

    return {f"{devices} {length}": bytes_of(devices, length) for devices, length in ((4, 2048), (8, 2048), (8, 4096))}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    parts = {part.__name__: part for part in (derivatives, variants, narrow, inside, memory)}
    print(json.dumps({name: parts[name]() for name in sys.argv[1:]}))
