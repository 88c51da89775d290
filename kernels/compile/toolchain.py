"""The compilers: where they are, what is missing, and what they want in the environment before JAX starts."""

import importlib.util
import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kernels.compile.report import CompilerMissing

EXTRA = "compile"
PLUGINS = {"jax_cuda13_plugin": "cu13", "jax_cuda12_plugin": "cuda_nvcc"}
"""The CUDA plugins, and below `nvidia/` the folder of the assembler that belongs to each."""


def require(kind: str) -> None:
    """Raise `CompilerMissing`, which names the extra, unless everything for this kind of target is installed."""
    if kind == "tpu":
        missing = [] if importlib.util.find_spec("libtpu") else ["libtpu"]
    else:
        missing = [] if _plugin() else ["a CUDA plugin of jax"]
        missing += [] if cuda_root() else ["ptxas"]
        missing += [] if importlib.util.find_spec("absl") else ["absl-py"]
    if missing:
        raise CompilerMissing(
            f"compiling for a {kind} needs {' and '.join(missing)}, not installed here: pip install 'jattn[{EXTRA}]'"
        )


def cuda_root() -> Path | None:
    """The folder with `bin/ptxas`, of the wheel that fits the plugin."""
    folders = [PLUGINS[plugin]] if (plugin := _plugin()) else []
    return next((root for folder in folders for root in _nvidia(folder) if (root / "bin/ptxas").exists()), None)


def ptxas() -> Path:
    """The assembler."""
    root = cuda_root()
    if root is None:
        require("gpu")
        raise CompilerMissing("ptxas is not installed")
    return root / "bin/ptxas"


def nvdisasm() -> Path | None:
    """The disassembler, of any wheel: it reads older code too."""
    folders = ("cu13", "cuda_nvcc", "cuda_nvdisasm")
    paths = (root / "bin/nvdisasm" for folder in folders for root in _nvidia(folder))
    return next((path for path in paths if path.exists()), None)


def environment(kind: str, directory: Path) -> dict[str, str]:
    """The environment of a process that compiles; it must be there before JAX is imported."""
    variables = dict(os.environ)
    variables.pop("XLA_FLAGS", None)  # a kernel is judged as it is compiled where nothing is said
    variables.update(
        JAX_PLATFORMS="cpu",  # or the CUDA plugin wants a driver
        JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
        JAX_ENABLE_COMPILATION_CACHE="0",  # what comes from a cache dumps nothing
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    if kind == "tpu":
        variables.update(
            TPU_SKIP_MDS_QUERY="1",
            TPU_WORKER_HOSTNAMES="localhost",
            TPU_ACCELERATOR_TYPE="v5litepod-4",
            ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # or a second process dies of a lock file
        )
    else:
        # One assembler for XLA, Mosaic GPU and us: a newer one on PATH makes XLA emit what ours refuses.
        root = ptxas().parents[1]
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        kept = [folder for folder in folders if not shutil.which("ptxas", path=folder)]
        variables.update(
            CUDA_ROOT=str(root),
            PATH=os.pathsep.join([str(root / "bin"), *kept]),
            MOSAIC_GPU_DUMP_TO=str(directory),
        )
    return variables


def versions(kind: str) -> dict[str, str]:
    """Versions of what takes part in compiling."""
    packages = ["jax", "jaxlib", "libtpu"] if kind == "tpu" else ["jax", "jaxlib", _plugin() or ""]
    found = {package.replace("_", "-"): _version(package) for package in packages}
    if kind == "gpu":
        said = subprocess.run([ptxas(), "--version"], capture_output=True, text=True, check=True).stdout
        found["ptxas"] = said.rpartition("release ")[2].split(",")[-1].split()[0].lstrip("V")
    return found


def _plugin() -> str | None:
    return next((plugin for plugin in PLUGINS if importlib.util.find_spec(plugin)), None)


def _nvidia(folder: str) -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return [Path(place) / folder for place in places or ()]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
