"""Type-check every public function's arrays while the tests run."""

import os

from jaxtyping import install_import_hook

# Tests have the tiles of the rules, whatever has been tuned on this machine.
os.environ["JATTN_TILES"] = os.devnull

# Tests compile far more than they compute: quickly, unless one says otherwise. The older emitters take half the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false",
)

# Shapes and dtypes in the annotations are checked at every call; must come before the packages are imported.
install_import_hook(["kernels", "jattn", "experiments"], "beartype.beartype")
