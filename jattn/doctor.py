"""What this machine can run, and what is missing."""

import importlib.util
from dataclasses import dataclass

import jax

from jattn.runs.environment import PACKAGES, processor, version_of
from kernels.tile_table import table_path


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what it is, how it stands, and what to do about it if anything."""

    subject: str
    state: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Versions, devices, what runs where, and which extras are missing."""
    findings = [Finding(package, version_of(package) or "missing", "") for package in PACKAGES]
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    findings.append(Finding("processor", processor()))
    count = f"{len(devices)} device{'s' if len(devices) > 1 else ''}"
    findings.append(Finding("JAX runs on", f"{jax.default_backend()}: {count} ({kinds})"))
    findings.append(_accelerator("GPU", "gpu", "jax_cuda12_plugin"))
    findings.append(_accelerator("TPU", "tpu", "libtpu"))
    kernels = {"gpu": "Pallas kernels (Triton)", "tpu": "Pallas kernels"}.get(
        jax.default_backend(), "tiled loop of XLA"
    )
    tuned = table_path(devices[0].device_kind)
    tiles = f"tiles of {tuned}" if tuned.exists() else "tiles by rule"
    findings.append(Finding("attention", f"{kernels}, {tiles}", "" if tuned.exists() else "jattn tune"))
    for tracker in ("wandb", "mlflow"):
        found = importlib.util.find_spec(tracker) is not None
        findings.append(
            Finding(f"tracker {tracker}", "installed" if found else "not installed (optional)",
                    "" if found else f"pip install 'jattn[{tracker}]'")
        )  # fmt: skip
    return findings


def _accelerator(name: str, extra: str, module: str) -> Finding:
    if jax.default_backend() == extra:
        return Finding(name, "in use")
    if importlib.util.find_spec(module) is None:
        return Finding(name, "no plugin installed", f"pip install 'jattn[{extra}]'")
    return Finding(name, "plugin installed, no device in use", "check the driver, and that JAX_PLATFORMS allows it")
