"""The hardware that kernels are compiled for, as its compilers want it described."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU. Memory sizes in bytes, bandwidth in bytes a second."""

    name: str
    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    bandwidth: int
    l2_cache: int
    clock_ghz: float
    memory: int

    @property
    def architecture(self) -> str:
        """The assembler's name; from Hopper on with the features that belong to one architecture only."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"

    @property
    def config(self) -> str:
        """The text that XLA reads a GPU's description from."""
        major, minor = self.capability
        extension = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_memory_per_block}
  shared_memory_per_core: {self.shared_memory_per_core} core_count: {self.cores} fpus_per_core: {self.fpus_per_core}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {self.bandwidth} l2_cache_size: {self.l2_cache} clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
  name: "{self.name}" driver_version: "12.8.0" runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{self.name}"
"""


@dataclass(frozen=True)
class Tpu:
    """A TPU: the smallest topology that has one, the bf16 flops that its matrix units can do in one cycle, and bytes.

    The bytes are its memory (HBM), as published.
    That of v6e is its published speed at 1.75 GHz: the compiler's own matmuls exceed half of it.
    """

    topology: str
    peak_flop_per_cycle: int
    memory: int


TARGETS: dict[str, Gpu | Tpu] = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167936, 166912, 2039040000000, 41943040, 1.41, 85095874560),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 233472, 232448, 3352320000000, 52428800, 1.98, 84942979072),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 128, 233472, 232448, 7672320000000, 132644864, 1.965, 191126044672),
    "v5e": Tpu("v5e:2x2", 4 * 128 * 128 * 2, 16 * 2**30),
    "v5p": Tpu("v5p:2x2x1", 8 * 128 * 128 * 2, 95 * 2**30),
    "v6e": Tpu("v6e:2x2", 4 * 256 * 256 * 2, 32 * 2**30),
}


def find_target(name: str) -> Gpu | Tpu:
    """The target of that name."""
    if name not in TARGETS:
        raise ValueError(f"the target must be one of {', '.join(TARGETS)}; got {name!r}")
    return TARGETS[name]


def kind_of(target: Gpu | Tpu) -> str:
    """Whether "gpu" or "tpu"."""
    return "gpu" if isinstance(target, Gpu) else "tpu"
