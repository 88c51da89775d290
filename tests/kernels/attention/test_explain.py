"""What `explain` says would run."""

import jax
import jax.numpy as jnp
import pytest

import jattn
import kernels
from kernels import masks

SHAPE = jax.ShapeDtypeStruct((2, 300, 4, 64), jnp.bfloat16)
GATHERING = masks.Where(lambda i, j, of: of[i] == j, (jnp.arange(300),))


def by_platform(**options: object) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in kernels.explain(SHAPE, SHAPE, SHAPE, **options):
        found.setdefault(line.platform, set()).add(line.implementation)
    return found


def test_every_platform_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert by_platform(mask=masks.Causal("start")) == {"cpu": {"xla"}, "cuda": {"gpu"}, "tpu": {"tpu"}}
    printed = capsys.readouterr().out
    assert "forward: attention" in printed
    assert "gradient: pairwise sum" in printed
    assert jattn.explain is kernels.explain


def test_what_kernels_cannot_do_falls_back_and_says_why() -> None:
    lines = kernels.explain(SHAPE, SHAPE, SHAPE, mask=GATHERING)
    assert {line.implementation for line in lines} == {"xla"}
    assert any("gather" in line.reason for line in lines if line.platform == "tpu")
    doubles = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.float64)
    with jax.enable_x64(True):
        lines = kernels.explain(doubles, doubles, doubles)
    assert {line.implementation for line in lines} == {"xla"}
    assert any("float64" in line.reason for line in lines if line.platform == "cuda")


def test_asked_for_by_name() -> None:
    assert by_platform(implementation="reference") == {name: {"reference"} for name in ("cpu", "cuda", "tpu")}
    assert by_platform(implementation="xla") == {name: {"xla"} for name in ("cpu", "cuda", "tpu")}
    assert by_platform(implementation="tpu") == {"cpu": {"tpu, interpreted"}, "cuda": {"none"}, "tpu": {"tpu"}}
    assert by_platform(implementation="gpu", mask=GATHERING) == {name: {"none"} for name in ("cpu", "cuda", "tpu")}


def test_statistics_bias_and_sink_are_part_of_it() -> None:
    bias, sink = jnp.zeros((4, 1, 300)), jnp.zeros(4)
    lines = kernels.explain(SHAPE, SHAPE, SHAPE, bias=bias, sink=sink, statistics=("entropy",))
    steps = [line.step for line in lines if line.platform == "cpu"]
    assert steps[:2] == ["forward: attention", "forward: pairwise sum"]
    assert steps.count("gradient: pairwise sum") >= 2


def test_wrong_arguments_are_refused(library_checks: None) -> None:
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        kernels.explain(SHAPE, SHAPE, SHAPE, implementation="cudnn")
