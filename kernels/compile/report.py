"""What a compiler said about a program: estimates made while compiling, never measurements."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

ESTIMATE = "compile-time estimates, not measurements: no hardware was used"


class CompileError(RuntimeError):
    """The compiler neither took nor refused the program: it crashed, ran out of time, or the case is at fault."""


class CompilerMissing(CompileError):
    """What is needed to compile for this target is not installed."""


@dataclass(frozen=True)
class GpuKernel:
    """One Pallas kernel as the GPU's assembler left it.

    Spills are bytes a thread. Instructions are counted in the code, not as often as they run; None without a
    disassembler. Shared memory is bytes a block, None where the dumps do not tell.
    """

    name: str
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_memory_bytes: int | None
    threads: int | None
    instructions: dict[str, int] | None


@dataclass(frozen=True)
class TpuKernel:
    """One Pallas kernel as the TPU compiler scheduled it.

    A bundle is one instruction word, counted in the code. Vector spills and fills are stores to and loads from VMEM for
    want of registers, also in the code. Cycles are the compiler's own simulation of the whole grid. None where the
    compiler told nothing.
    """

    name: str
    vmem_bytes: int | None
    bundles: int | None
    vector_spills: int | None
    vector_fills: int | None
    cycles: int | None


@dataclass(frozen=True)
class Report:
    """What one compilation told.

    `refused` is the compiler's message when it took the program for impossible on that target. `memory` has the bytes
    of arguments, outputs and temporaries. `xla_kernels` are the kernels that XLA itself made around the Pallas
    kernels, `xla_cycles` the sum of their cycles.
    """

    case: str
    target: str
    parameters: dict[str, Any]
    versions: dict[str, str]
    kernels: tuple[GpuKernel | TpuKernel, ...] = ()
    refused: str | None = None
    memory: dict[str, int] | None = None
    xla_kernels: tuple[str, ...] = ()
    xla_cycles: int | None = None
    flops: int | float | None = None
    peak_flop_per_cycle: int | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def cycles(self) -> int | None:
        """Cycles of the whole program, XLA's kernels included; None unless all are known."""
        known = [kernel.cycles for kernel in self.kernels if isinstance(kernel, TpuKernel) and kernel.cycles]
        total = sum(known) + (self.xla_cycles or 0)
        return total if total and len(known) == len(self.kernels) else None

    @property
    def flop_per_cycle(self) -> float | None:
        """The case's flops over the program's cycles; None where that is above the peak, hence the estimate wrong."""
        if not self.cycles or not self.flops or self.below_floor:
            return None
        return self.flops / self.cycles

    @property
    def below_floor(self) -> bool:
        """Whether the cycles are fewer than the flops need at the hardware's peak, which no program can have."""
        known = self.cycles and self.flops and self.peak_flop_per_cycle
        return bool(known) and self.flops / self.cycles > self.peak_flop_per_cycle  # pyright: ignore

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        derived = {"cycles": self.cycles, "flop_per_cycle": self.flop_per_cycle, "below_floor": self.below_floor}
        return {"what": ESTIMATE, **asdict(self), **derived}


def report_from_json(plain: Mapping[str, Any]) -> Report:
    """The report that `dataclasses.asdict` and JSON took apart."""
    kernels = (GpuKernel(**k) if "registers" in k else TpuKernel(**k) for k in plain["kernels"])
    sequences = {name: tuple(plain[name]) for name in ("xla_kernels", "notes")}
    return Report(**{**plain, **sequences, "kernels": tuple(kernels)})
