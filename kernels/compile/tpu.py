"""Compile for a TPU, and read what libtpu dumped."""

import math
import os
import re
from glob import escape
from pathlib import Path
from typing import Any

from jax.experimental import topologies

from kernels.compile.report import TpuKernel
from kernels.compile.targets import Tpu

VMEM = "1"
"""The number of VMEM among libtpu's memory spaces."""


def devices(target: Tpu, count: int) -> list[Any]:
    """So many devices of the target that can be compiled for, of the smallest cube or square that has them."""
    kind, _, smallest = target.topology.partition(":")
    sides = sorted(int(side) for side in smallest.split("x"))
    while math.prod(sides) < count:
        sides = sorted([2 * sides[0], *sides[1:]])
    # libtpu wants the flat side last.
    shape = [*sides[1:], 1] if sides[0] == 1 else sides
    name = f"{kind}:{'x'.join(map(str, shape))}"
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices[:count])


def dump_to(directory: Path) -> None:
    """Make libtpu simulate what it compiles and dump its schedules; must come before it loads, at the first device."""
    dumps = (
        f"--xla_jf_dump_static_llo_profile_to={directory} --xla_jf_dump_to={directory} "
        "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final.*"
    )
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {dumps}".strip()


def options(fit_only: bool) -> dict[str, int | float] | None:
    """What makes XLA take the first code that is right, if only that is wanted.

    All-reduces are left apart: combined ones take libtpu longer with every array, for the gradient of a model up to
    half of the whole time. A run combines them, so its temporaries differ somewhat.
    """
    return {"exec_time_optimization_effort": -1.0, "xla_jf_crs_combiner_threshold_count": 1} if fit_only else None


def facts(directory: Path, compiled: Any) -> dict[str, Any]:
    """The fields of a report that the dumps tell."""
    kernels, xla, cycles = [], [], 0
    for operation in read_operations(compiled.as_text()):
        if operation["pallas"]:
            kernels.append(
                TpuKernel(
                    name=operation["name"],
                    vmem_bytes=operation["vmem"],
                    cycles=operation["cycles"],
                    **read_schedule(directory, operation["name"]),
                )
            )
        elif operation["cycles"]:
            xla.append(operation["name"])
            cycles += operation["cycles"]
    notes = ["what a loop of XLA runs many times is counted once"] if " while(" in compiled.as_text() else []
    return {"kernels": tuple(kernels), "xla_kernels": tuple(xla), "xla_cycles": cycles, "notes": tuple(notes)}


def read_operations(program: str) -> list[dict[str, Any]]:
    """Name, cycles and VMEM of each operation of an optimised program that has an estimate or is a Pallas kernel."""
    operations = []
    for line in program.splitlines():
        named = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        pallas = 'custom_call_target="tpu_custom_call"' in line
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        if named and (pallas or cycles):
            used = re.search(r'"used_scoped_memory_configs":\[(.*?)\]', line)
            sizes = re.findall(r'"memory_space":"(\d+)"[^}]*?"size":"(\d+)"', used[1]) if used else []
            operations.append(
                {
                    "name": named[1],
                    "pallas": pallas,
                    "cycles": int(cycles[1]) if cycles else None,
                    "vmem": sum(int(size) for space, size in sizes if space == VMEM) if used else None,
                }
            )
    return operations


def read_schedule(directory: Path, name: str) -> dict[str, int | None]:
    """Bundles and vector spills of one kernel; None where it was not dumped, as when an equal one was."""
    analysis = _dump(directory, name, "schedule-analysis_final_bundles")
    bundles = re.search(r"total scheduled bundles:\s*(\d+)", analysis)
    spills = count_spills(_dump(directory, name, "final_hlo-static-per-bundle-utilization"))
    return {"bundles": int(bundles[1]) if bundles else None, **spills}


def count_spills(utilisation: str) -> dict[str, int | None]:
    """Sum the columns of vector stores and loads that spilling added."""
    lines = utilisation.splitlines()
    header = next((n for n, line in enumerate(lines) if "VSTORE:SPILL" in line), None)
    if header is None:
        return {"vector_spills": None, "vector_fills": None}
    columns = [column.strip() for column in lines[header].split(",")]
    start = next(n for n, line in enumerate(lines) if "UTILIZATION" in line) + 1
    rows = [[int(cell) for cell in line.split()] for line in lines[start:] if line.strip()]
    spills, fills = columns.index("VSTORE:SPILL"), columns.index("VLOAD:FILL")
    return {"vector_spills": sum(row[spills] for row in rows), "vector_fills": sum(row[fills] for row in rows)}


def _dump(directory: Path, name: str, stage: str) -> str:
    path = next(directory.glob(f"*-{escape(name)}-*-{stage}.txt"), None)
    return path.read_text(errors="replace") if path else ""
