"""Our linear attention as compiled for its hardware: no spills, tensor cores, within memory."""

import pytest
from test_attention_cases import TENSOR_CORES, VMEM, need

from kernels.compile import GpuKernel, TpuKernel, compile_kernel

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", ["linear-attention", "linear-attention-backward"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("target", TENSOR_CORES)
def test_gpu_kernels_do_not_spill_and_use_tensor_cores(target: str, head_dim: int, case: str) -> None:
    need("gpu")
    report = compile_kernel(case, target, head_dim=head_dim, delta=True)
    assert report.refused is None
    assert {kernel.name.split("__")[0] for kernel in report.kernels} == {"decayed_product", "unit_solve"}
    for kernel in report.kernels:
        assert isinstance(kernel, GpuKernel)
        assert (kernel.spill_store_bytes, kernel.spill_load_bytes) == (0, 0), kernel
        assert kernel.instructions is None or TENSOR_CORES[target] & kernel.instructions.keys(), kernel


@pytest.mark.parametrize("case", ["linear-attention", "linear-attention-backward"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("target", TENSOR_CORES)
def test_gpu_kernels_do_not_spill_in_single_precision(target: str, head_dim: int, case: str) -> None:
    need("gpu")
    report = compile_kernel(case, target, head_dim=head_dim, delta=True, dtype="float32")
    assert report.refused is None
    assert report.kernels
    assert not any(each.spill_store_bytes or each.spill_load_bytes for each in report.kernels), report.kernels


@pytest.mark.parametrize("case", ["linear-attention", "linear-attention-backward"])
@pytest.mark.parametrize(("target", "head_dim"), [("v5e", 64), ("v5e", 128), ("v6e", 128)])
def test_tpu_kernels_fit(target: str, head_dim: int, case: str) -> None:
    need("tpu")
    report = compile_kernel(case, target, head_dim=head_dim, delta=True, heads=1, length=1024)
    assert report.refused is None
    assert report.kernels
    for kernel in report.kernels:
        assert isinstance(kernel, TpuKernel)
        assert kernel.vmem_bytes is None or kernel.vmem_bytes <= VMEM, kernel
