"""Our kernels for the hardware they are for, as its compilers leave them: no spills, tensor cores, within memory.

Each compiles for half a minute, where the compilers are installed: `pip install -e '.[compile]'`, `make slow`.
"""

from itertools import product

import pytest

from kernels.compile import CompilerMissing, GpuKernel, TpuKernel, compile_kernel
from kernels.compile.toolchain import require

TENSOR_CORES = {"a100": {"HMMA"}, "h100": {"HGMMA"}, "b200": {"UTCHMMA"}}
VMEM = 16 * 2**20
"""What a kernel may have on a v5e by default; the others have more."""

pytestmark = pytest.mark.slow


def need(kind: str) -> None:
    try:
        require(kind)
    except CompilerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("target", "head_dim"), list(product(TENSOR_CORES, (64, 128))))
def test_gpu_kernels_do_not_spill_and_use_tensor_cores(target: str, head_dim: int, causal: bool) -> None:
    need("gpu")
    report = compile_kernel("attention-backward", target, head_dim=head_dim, causal=causal)
    assert report.refused is None
    names = {kernel.name for kernel in report.kernels}
    assert len(names) == 3, f"forward, and two of the backward pass; got {names}"
    for kernel in report.kernels:
        assert isinstance(kernel, GpuKernel)
        assert (kernel.spill_store_bytes, kernel.spill_load_bytes) == (0, 0), kernel
        assert kernel.instructions is None or TENSOR_CORES[target] & kernel.instructions.keys(), kernel


@pytest.mark.parametrize("case", ["attention", "attention-backward"])
@pytest.mark.parametrize(("target", "head_dim"), list(product(("v5e", "v5p", "v6e"), (64, 128, 256))))
def test_tpu_kernels_fit(target: str, head_dim: int, case: str) -> None:
    need("tpu")
    report = compile_kernel(case, target, head_dim=head_dim, heads=1, length=1024)
    assert report.refused is None
    assert report.kernels
    for kernel in report.kernels:
        assert isinstance(kernel, TpuKernel)
        assert kernel.vmem_bytes is None or kernel.vmem_bytes <= VMEM, kernel


def test_forward_on_v5e_needs_no_more_cycles_than_jax() -> None:
    """Kernel against kernel, at jax's best tiles; an estimate of one compiler, so not a fact about hardware."""
    need("tpu")
    ours = compile_kernel("attention", "v5e", causal=False)
    theirs = compile_kernel("jax-tpu-flash", "v5e", causal=False, key_block=2048)
    (kernel,), (their_kernel,) = ours.kernels, theirs.kernels
    assert isinstance(kernel, TpuKernel)
    assert isinstance(their_kernel, TpuKernel)
    assert kernel.cycles is not None
    assert their_kernel.cycles is not None
    assert kernel.cycles <= their_kernel.cycles
