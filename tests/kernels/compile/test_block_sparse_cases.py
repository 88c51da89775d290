"""Attention over listed blocks for hardware that is not there: no spills, tensor cores, within memory."""

from itertools import product

import pytest
from test_attention_cases import TENSOR_CORES, VMEM, need

from kernels.compile import GpuKernel, TpuKernel, compile_kernel

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize(("target", "head_dim", "block"), list(product(TENSOR_CORES, (64, 128), (64, 128))))
def test_gpu_kernels_do_not_spill_and_use_tensor_cores(target: str, head_dim: int, block: int, gates: bool) -> None:
    need("gpu")
    report = compile_kernel("block-sparse-attention-backward", target, head_dim=head_dim, block=block, gates=gates)
    assert report.refused is None
    assert len({kernel.name for kernel in report.kernels}) == 3
    for kernel in report.kernels:
        assert isinstance(kernel, GpuKernel)
        assert (kernel.spill_store_bytes, kernel.spill_load_bytes) == (0, 0), kernel
        assert kernel.instructions is None or TENSOR_CORES[target] & kernel.instructions.keys(), kernel


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("target", ["v5e", "v5p", "v6e"])
def test_tpu_kernels_fit_and_take_time_for_what_is_listed(target: str, gates: bool) -> None:
    """Time goes with what is listed, beside what each row tile takes; estimates of one compiler."""
    need("tpu")
    cycles = []
    for listed in (4, 8, 16):
        report = compile_kernel("block-sparse-attention-backward", target, head_dim=128, listed=listed, gates=gates)
        assert report.refused is None
        assert report.kernels
        for kernel in report.kernels:
            assert isinstance(kernel, TpuKernel)
            assert kernel.vmem_bytes is None or kernel.vmem_bytes <= VMEM, kernel
        cycles.append(sum(kernel.cycles or 0 for kernel in report.kernels if isinstance(kernel, TpuKernel)))
    few, some, all_there_are = cycles
    assert all_there_are - some == pytest.approx(2 * (some - few), rel=0.05)
    assert few <= 0.5 * all_there_are
