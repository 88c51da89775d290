"""Compile for an NVIDIA GPU, assemble what XLA and Mosaic GPU dumped once more, and read it."""

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from jax.experimental import topologies

from kernels.compile import toolchain
from kernels.compile.report import GpuKernel
from kernels.compile.targets import Gpu

COUNTED = re.compile(r"\w*MMA|LDGSTS|UTMALDG|UTMASTG|LDL|STL|MUFU|BAR")
"""Instructions worth counting: tensor cores, asynchronous copies, local memory (spills), exp and its like, barriers."""
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")
MOSAIC = "_mosaic_gpu_kernel"
"""How the names of Mosaic GPU's kernels end."""


def device(target: Gpu) -> Any:
    """A device of the target that can be compiled for."""
    return topologies.get_topology_desc(
        platform="cuda", topology_name="gpu", target_config=target.config, topology="1x1x1"
    ).devices[0]


def options(directory: Path) -> dict[str, str]:
    """What makes XLA dump its kernels."""
    return {"xla_dump_to": str(directory), "xla_dump_emitter_re": ".*"}


def facts(target: Gpu, directory: Path, lowered: str, compiled: Any) -> dict[str, Any]:
    """The fields of a report that the dumps tell."""
    launches = read_launches("".join(path.read_text() for path in directory.glob("*thunk_sequence.txt")))
    triton = set(re.findall(r'\bname = "([^"]+)"', lowered))
    kernels, xla, notes = {}, [name for name in launches if _stem(name) not in triton], []
    for ptx in sorted(directory.glob("*.ptx")):
        code = ptx.read_text()
        for name in re.findall(r"\.visible \.entry ([\w$]+)", code):
            if name.endswith(MOSAIC) or _stem(name) in triton:
                kernels[name] = _assemble(target, ptx, name, launches.get(name), code)
    if toolchain.nvdisasm() is None:
        notes.append("instructions are not counted: nvdisasm is not installed")
    analysis = compiled.memory_analysis()
    needed = sum(getattr(analysis, f"{name}_size_in_bytes") for name in ("argument", "output", "temp"))
    if needed > target.memory:
        notes.append(f"the program needs {needed} bytes, more than the {target.memory} there are; XLA does not check")
    return {"kernels": tuple(kernels.values()), "xla_kernels": tuple(xla), "notes": tuple(notes)}


def read_launches(thunks: str) -> dict[str, tuple[int, int]]:
    """Threads and bytes of shared memory a block of each kernel that XLA launches."""
    pattern = r"(\S+) grid: \[[\d, ]+\] threads: \[([\d, ]+)\]\s+shared_memory: (\d+) bytes"
    launches = {}
    for name, threads, shared in re.findall(pattern, thunks):
        x, y, z = (int(size) for size in threads.split(","))
        launches[name] = (x * y * z, int(shared))
    return launches


def read_assembler(log: str, name: str) -> dict[str, int]:
    """Registers and spilled bytes of one kernel, from what `ptxas -v` says."""
    told = log.partition(f"entry function '{name}'")[2].partition("Compiling entry function")[0]
    registers = re.search(r"Used (\d+) registers", told)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    if registers is None or spills is None:
        raise ValueError(f"ptxas told nothing of {name}:\n{log}")
    return {
        "registers": int(registers[1]),
        "spill_store_bytes": int(spills[1]),
        "spill_load_bytes": int(spills[2]),
    }


def count_instructions(assembly: str, name: str) -> dict[str, int]:
    """Instructions worth counting in one kernel's disassembly."""
    code = assembly.partition(f"\n.text.{name}:")[2].partition("//--------------------- .")[0]
    found = (match[1] for line in code.splitlines() if (match := INSTRUCTION.match(line)))
    return dict(Counter(mnemonic for mnemonic in found if COUNTED.fullmatch(mnemonic)).most_common())


def _assemble(target: Gpu, ptx: Path, name: str, launch: tuple[int, int] | None, code: str) -> GpuKernel:
    cubin = ptx.with_suffix(".cubin")
    command = [toolchain.ptxas(), "-v", f"--gpu-name={target.architecture}", ptx, "-o", cubin]
    log = subprocess.run(command, capture_output=True, text=True)
    if log.returncode:
        raise ValueError(f"ptxas refused what the compiler emitted for {name}: {log.stderr}")
    disassembler, instructions = toolchain.nvdisasm(), None
    if disassembler:
        said = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True).stdout
        instructions = count_instructions(said, name)
    size = re.search(rf"\.entry {re.escape(name)}\([^)]*\)\s*\.(?:req|max)ntid (\d+)(?:, (\d+), (\d+))?", code)
    threads = int(size[1]) * int(size[2] or 1) * int(size[3] or 1) if size else None
    return GpuKernel(
        name=name,
        threads=launch[0] if launch else threads,
        shared_memory_bytes=launch[1] if launch else _mosaic_shared_memory(ptx),
        instructions=instructions,
        **read_assembler(log.stderr, name),
    )


def _mosaic_shared_memory(ptx: Path) -> int | None:
    """Mosaic GPU's kernels take their shared memory at launch, which only the log of its passes tells."""
    log = ptx.with_suffix(".mlir-passes.log")
    told = re.search(r"dynamic_shared_memory_size %c(\d+)_i32", log.read_text()) if log.exists() else None
    return int(told[1]) if told else None


def _stem(name: str) -> str:
    """A kernel's name without the number that XLA gives the second of a name."""
    return re.sub(r"_{1,2}\d+$", "", name)
