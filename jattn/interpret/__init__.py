"""Looking into models and changing what is there: capture, edits, path patching, probes, controls, views."""

from jattn.interpret.attention import CalibrateColumns, CalibrateSinks, DropColumns, OverrideRow, mean_column_weights
from jattn.interpret.capture import Captured, capture
from jattn.interpret.controls import Difference, Overlap, overlap, paired_bootstrap, permutation_p_value, random_heads
from jattn.interpret.edit import Add, Edit, Mean, Resample, Scale, Set, Where, edit, mask_heads
from jattn.interpret.patching import Receiver, attribute_heads, one_head_each, patching_effect, path_patch

__all__ = [
    "Add",
    "CalibrateColumns",
    "CalibrateSinks",
    "Captured",
    "Difference",
    "DropColumns",
    "Edit",
    "Mean",
    "Overlap",
    "OverrideRow",
    "Receiver",
    "Resample",
    "Scale",
    "Set",
    "Where",
    "attribute_heads",
    "capture",
    "edit",
    "mask_heads",
    "mean_column_weights",
    "one_head_each",
    "overlap",
    "paired_bootstrap",
    "patching_effect",
    "path_patch",
    "permutation_p_value",
    "random_heads",
]
