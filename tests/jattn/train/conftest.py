"""Import training once with beartype's remark on a base class of Flax silenced, for warnings are errors here."""

import warnings

from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

with warnings.catch_warnings():
    # nnx.State derives from a mapping over typing.Hashable; nothing of ours can be written otherwise.
    warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
    import jattn.train  # noqa: F401
