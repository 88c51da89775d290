"""The process that compiles: `python -m kernels.compile DIRECTORY`, with the environment of `toolchain.environment`."""

import json
import math
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from kernels.compile import gpu, tpu
from kernels.compile.case import Case, load_case
from kernels.compile.report import Report
from kernels.compile.targets import TARGETS, Gpu, Tpu


def main(directory: Path) -> None:
    """Read the order, compile, and write the report, or what went wrong before the compiler came to it."""
    order = json.loads((directory / "order.json").read_text())
    if hasattr(signal, "alarm"):
        signal.alarm(order["seconds"])
    try:
        answer = asdict(_compile(order, directory))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        answer = {"error": f"the case {order['case']} failed before it was compiled: {told}"}
    unfinished = directory / "result.json.unfinished"
    unfinished.write_text(json.dumps(answer))
    unfinished.rename(directory / "result.json")


def _compile(order: dict[str, Any], directory: Path) -> Report:
    target = TARGETS[order["target"]]
    case = load_case(order["location"], order["parameters"])
    told = {name: order[name] for name in ("case", "target", "parameters", "versions")}
    told |= {
        "flops": case.flops,
        "peak_flop_per_cycle": target.peak_flop_per_cycle if isinstance(target, Tpu) else None,
    }
    if isinstance(target, Tpu) and not case.fit_only:
        tpu.dump_to(directory)
    options = gpu.options(directory) if isinstance(target, Gpu) else tpu.options(case.fit_only)
    traced, mesh = _trace(case, _mesh(case, target))
    try:
        with jax.sharding.use_abstract_mesh(mesh):
            lowered = traced.lower()
            compiled = lowered.compile(options)
    except Exception as error:  # each compiler raises what it likes
        return Report(**told, refused=f"{type(error).__name__}: {error}".strip())
    facts = (
        gpu.facts(target, directory, lowered.as_text(), compiled)
        if isinstance(target, Gpu)
        else tpu.facts(directory, compiled)
    )
    return Report(**told, memory=_memory(compiled), **facts)


def _mesh(case: Case, target: Gpu | Tpu) -> Mesh:
    """The mesh of the case, or one device, which Pallas learns of by a mesh too."""
    axes = {"_": 1} if case.mesh is None else dict(case.mesh)
    if isinstance(target, Gpu):
        if case.mesh is not None:
            raise ValueError(f"the target must be a TPU for a case with a mesh; got {target.name}")
        devices = [gpu.device(target)]
    else:
        devices = tpu.devices(target, math.prod(axes.values()))
    return Mesh(np.array(devices).reshape(tuple(axes.values())), tuple(axes))


def _trace(case: Case, mesh: Mesh) -> tuple[Any, AbstractMesh]:
    """The traced program with its arguments on every device of the mesh, and the mesh to lower it with."""
    alone = case.mesh is None
    sharding = SingleDeviceSharding(mesh.devices.item()) if alone else NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), case.arguments)
    abstract = mesh.abstract_mesh
    with jax.sharding.use_abstract_mesh(abstract):
        return jax.jit(case.function).trace(*shapes), abstract


def _memory(compiled: Any) -> dict[str, int]:
    analysis = compiled.memory_analysis()
    return {name: getattr(analysis, f"{name}_size_in_bytes") for name in ("argument", "output", "temp")}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
