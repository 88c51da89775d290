"""What importing the package does, seen from a fresh process each."""

import json
import subprocess
import sys

HEAVY = {"matplotlib", "sklearn", "scipy", "orbax", "grain", "tensorboardX", "rich", "tyro", "wandb", "mlflow"}


def in_a_fresh_process(code: str) -> list[str]:
    """The JSON list that the code prints."""
    command = [sys.executable, "-W", "error::DeprecationWarning:jattn", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def roots(imports: str) -> set[str]:
    code = f"import {imports}, json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return set(in_a_fresh_process(code))


def test_the_package_itself_is_light() -> None:
    loaded = roots("jattn") - roots("sys")
    assert "jattn" in loaded
    assert not loaded & HEAVY
    assert not loaded & {"jax", "flax", "numpy", "kernels", "experiments"}


def test_kernels_and_attention_bring_nothing_but_jax_and_flax() -> None:
    kernels = roots("kernels") - roots("jax, jaxtyping")
    assert kernels == {"kernels"}
    attention = roots("jattn.mechanisms") - roots("jax, jaxtyping, flax.nnx")
    assert attention == {"jattn", "kernels"}


def test_no_import_starts_a_device() -> None:
    data = ", ".join(f"jattn.data.{name}" for name in ("linear_prompts", "tables", "text", "images", "byte_windows"))
    modules = f"jattn, jattn.runs, jattn.train, jattn.mechanisms, {data}, jattn.cli"
    count = "from jax._src import xla_bridge; print(json.dumps(list(xla_bridge._backends)))"
    assert in_a_fresh_process(f"import json, {modules}; {count}") == []
    # The look that is taken does see a device once there is one.
    assert in_a_fresh_process(f"import json, jax; jax.devices(); {count}") != []


def test_no_import_writes_or_changes_anything() -> None:
    code = """
import json, logging, os, signal, sys, tempfile
os.chdir(tempfile.mkdtemp())
def state():
    logs = [(log.level, len(log.handlers)) for log in (logging.getLogger(), logging.getLogger("jattn"))]
    return [logs, dict(os.environ), str(signal.getsignal(signal.SIGINT)), str(signal.getsignal(signal.SIGTERM))]
import flax.nnx, jax, orbax.checkpoint, grain, matplotlib, sklearn, rich, tyro, tensorboardX
before = state(), jax.config.values.copy()
import jattn.cli
print(json.dumps([before == (state(), jax.config.values), os.listdir()]))
"""
    assert in_a_fresh_process(code) == [True, []]
