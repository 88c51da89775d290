"""Type-check every public function's arrays while the tests run."""

from jaxtyping import install_import_hook

# Shapes and dtypes in the annotations are checked at every call; must come before the packages are imported.
install_import_hook(["kernels", "jattn", "experiments"], "beartype.beartype")
