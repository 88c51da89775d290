"""A report as lines of text and rows of a table."""

from typing import Any

from kernels.compile.report import ESTIMATE, Report


def heading(report: Report) -> str:
    """What was compiled for what, and by which versions."""
    settings = "".join(f" {name}={value}" for name, value in report.parameters.items())
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return f"{report.case}{settings} for {report.target} ({versions}): {ESTIMATE}"


def kernel_rows(report: Report) -> list[dict[str, str]]:
    """One row a Pallas kernel, every cell written out."""
    return [{name.replace("_", " "): _write(fact) for name, fact in vars(kernel).items()} for kernel in report.kernels]


def summary(report: Report) -> list[str]:
    """What concerns the whole program."""
    if report.refused:
        return [f"The compiler refused it: {report.refused}"]
    lines = [] if report.kernels else ["There is no Pallas kernel in it."]
    if report.memory:
        lines.append("memory: " + ", ".join(f"{size:,} bytes {name}" for name, size in report.memory.items()))
    if report.xla_kernels:
        cycles = f", {report.xla_cycles:,} cycles" if report.xla_cycles is not None else ""
        lines.append(f"around them: {len(report.xla_kernels)} kernels of XLA's own{cycles}")
    if report.below_floor:
        lines.append(f"cycles: {report.cycles:,}, fewer than the flops need at peak: a wrong estimate, disregard it")
    elif report.cycles:
        lines.append(f"cycles: {report.cycles:,}{_speed(report)}")
    return lines + [f"note: {note}" for note in report.notes]


def _write(fact: Any) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{count} {name}" for name, count in fact.items()) or "none"
    return "unknown" if fact is None else f"{fact:,}" if isinstance(fact, int) else fact


def _speed(report: Report) -> str:
    if report.flop_per_cycle is None:
        return ""
    peak = report.peak_flop_per_cycle
    share = f", {report.flop_per_cycle / peak:.0%} of the peak of {peak:,}" if peak else ""
    return f"; {report.flop_per_cycle:,.0f} flop per cycle{share}"
