"""Reading what the compilers dump, on lines from real dumps."""

import pytest

from kernels.compile.case import parse_settings
from kernels.compile.gpu import count_instructions, read_assembler, read_launches
from kernels.compile.report import GpuKernel, Report, TpuKernel, report_from_json
from kernels.compile.text import summary
from kernels.compile.tpu import count_spills, read_operations, read_schedule

PROGRAM = """
ENTRY %main.4 (q.1: bf16[1,4,2048,128]) -> (bf16[1,4,2048,128]) {
  %q.1 = bf16[1,4,2048,128]{3,2,1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}, metadata={op_name="q"}
  %reduce_fusion = f32[4,2048]{1,0} fusion(%q.1), kind=kLoop, backend_config={"estimated_cycles":"1200","flops":"0"}
  ROOT %flash.1 = bf16[1,4,2048,128] custom-call(%q.1), custom_call_target="tpu_custom_call", \
backend_config={"flag_configs":[],"scoped_memory_configs":[],"used_scoped_memory_configs":\
[{"memory_space":"1","offset":"0","size":"8130560"},{"memory_space":"5","offset":"0","size":"64"}],\
"bundle_analysis_data":{"estimated_cycles":"100549","flops":"0","scalar_inputs":"0"}}
}
"""
UTILISATION = """== CAPACTIY:
MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU
    4     3     4     2     1     3     3     1     1     2
== UTILIZATION:
0 0 0 0 0 0 0 0 0 2
2 1 4 0 1 3 2 1 1 0
2 1 4 0 1 1 1 0 0 0
"""
SCHEDULE = "Schedule analysis:\n\ttotal scheduled bundles:    5930\n\tempty scheduled bundles:    14\n"
ASSEMBLER = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'mha_forward' for 'sm_90a'
ptxas info    : Function properties for mha_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 225 registers, used 1 barriers
ptxas info    : Compiling entry function 'mha_backward' for 'sm_90a'
ptxas info    : Function properties for mha_backward
    744 bytes stack frame, 916 bytes spill stores, 900 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""
THUNKS = """001: kCustomKernel [source       | next=003 (2)] loop_broadcast_fusion grid: [2048, 1, 1] threads: \
[128, 1, 1]  shared_memory: 0 bytes
002: kCustomKernel [source       | next=003 (1)] mha_forward grid: [16, 1, 4] threads: [256, 1, 1]  \
shared_memory: 163840 bytes
003: kCustomCall [source | sink] kCustomCall
"""
ASSEMBLY = """
//--------------------- .text.mha_forward         --------------------------
        .global         mha_forward
mha_forward:
.text.mha_forward:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0580*/                   LDGSTS.E.BYPASS.128 [R5+0x8000], desc[UR18][R2.64] ;
        /*0590*/               @P1 BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0bd0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0be0*/              @!UP0 UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR12], tmem[UR14], idesc[UR15], UP1 ;
        /*0bf0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0c00*/                   IMAD.WIDE R2, R2, 0x2, R4 ;
//--------------------- .text.other              --------------------------
.text.other:
        /*0000*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
"""


def test_operations_of_a_tpu_program():
    fusion, kernel = read_operations(PROGRAM)
    assert fusion == {"name": "reduce_fusion", "pallas": False, "cycles": 1200, "vmem": None}
    assert kernel == {"name": "flash.1", "pallas": True, "cycles": 100549, "vmem": 8130560}


def test_schedule_of_a_tpu_kernel(tmp_path):
    (tmp_path / "17-flash.1-01-final_hlo-static-per-bundle-utilization.txt").write_text(UTILISATION)
    (tmp_path / "17-flash.1-02-schedule-analysis_final_bundles.txt").write_text(SCHEDULE)
    assert read_schedule(tmp_path, "flash.1") == {"bundles": 5930, "vector_spills": 1, "vector_fills": 3}
    assert set(read_schedule(tmp_path, "flash").values()) == {None}


def test_no_utilisation_is_not_no_spills():
    assert count_spills("") == {"vector_spills": None, "vector_fills": None}


def test_assembler_log():
    assert read_assembler(ASSEMBLER, "mha_backward") == {
        "registers": 255,
        "spill_store_bytes": 916,
        "spill_load_bytes": 900,
    }
    assert read_assembler(ASSEMBLER, "mha_forward")["registers"] == 225
    with pytest.raises(ValueError, match="told nothing"):
        read_assembler(ASSEMBLER, "another")


def test_launches():
    assert read_launches(THUNKS) == {"loop_broadcast_fusion": (128, 0), "mha_forward": (256, 163840)}


def test_instructions_of_one_kernel():
    assert count_instructions(ASSEMBLY, "mha_forward") == {"HGMMA": 2, "LDGSTS": 1, "BAR": 1, "UTCHMMA": 1}
    assert count_instructions(ASSEMBLY, "other") == {"HMMA": 1}


def test_settings():
    assert parse_settings(["head_dim=64", "causal=True", "dtype=bfloat16", "window=-1"]) == {
        "head_dim": 64,
        "causal": True,
        "dtype": "bfloat16",
        "window": -1,
    }
    with pytest.raises(ValueError, match="name=value"):
        parse_settings(["head_dim"])


def report(cycles: int | None, **fields) -> Report:
    kernel = TpuKernel("flash.1", 8130560, 5930, 0, 0, cycles)
    return Report("flash", "v5e", {}, {"jax": "0"}, (kernel,), **fields)


def test_speed_counts_what_xla_adds():
    told = report(900, xla_cycles=100, xla_kernels=("fusion",), flops=5e4, peak_flop_per_cycle=100)
    assert (told.cycles, told.flop_per_cycle) == (1000, 50)
    assert any("50 flop per cycle, 50% of the peak" in line for line in summary(told))


def test_an_estimate_faster_than_the_hardware_is_disregarded():
    told = report(1000, flops=2e5, peak_flop_per_cycle=100)
    assert told.flop_per_cycle is None
    assert any("a wrong estimate" in line for line in summary(told))


def test_an_unknown_kernel_makes_the_sum_unknown():
    assert report(None, xla_cycles=100).cycles is None


def test_reports_survive_json():
    gpu = Report("mha", "h100", {"causal": True}, {}, (GpuKernel("mha", 225, 0, 0, None, 256, {"HGMMA": 16}),))
    for told in (gpu, report(1000, notes=("a note",))):
        plain = told.to_json()
        for derived in ("what", "cycles", "flop_per_cycle", "below_floor"):
            del plain[derived]
        assert report_from_json(plain) == told
