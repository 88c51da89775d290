"""Training steps of the papers' sizes compile for a mesh of TPUs, and fit the memory of each.

Each compiles for minutes, where the compiler is installed: `pip install -e '.[compile]'`, `make slow`.
"""

from pathlib import Path

import pytest

from kernels.compile import TARGETS, CompilerMissing, compile_kernel
from kernels.compile.toolchain import require

PROGRAM = f"{Path(__file__).parent / 'paper_programs.py'}:program"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("experiment", "arm"),
    [
        ("biformer", "routed_4"),
        ("landmark", "landmark"),
        ("lightning", "lightning"),
        ("mixture_of_heads", "mixture_75"),
        ("routing_transformer", "routing"),
    ],
)
def test_the_papers_step_fits_its_mesh(experiment: str, arm: str) -> None:
    try:
        require("tpu")
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    report = compile_kernel(PROGRAM, "v5p", timeout=3600, experiment=experiment, arm=arm)
    assert report.refused is None
    assert report.memory is not None
    # The state comes and goes, as here it is not overwritten: a run needs less.
    assert sum(report.memory.values()) < TARGETS["v5p"].memory  # pyright: ignore[reportAttributeAccessIssue]
