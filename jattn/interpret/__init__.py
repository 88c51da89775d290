"""Looking into models and changing what is there: capture, edits, path patching, probes, controls, views."""

from jattn.interpret.attention import CalibrateColumns, CalibrateSinks, DropColumns, OverrideRow, mean_column_weights
from jattn.interpret.capture import Captured, capture
from jattn.interpret.controls import Difference, Overlap, overlap, paired_bootstrap, permutation_p_value, random_heads
from jattn.interpret.edit import Add, Edit, Mean, Resample, Rescale, Scale, Set, Where, edit, mask_heads
from jattn.interpret.patching import Receiver, attribute_heads, one_head_each, patching_effect, path_patch
from jattn.interpret.probes import (
    PENALTIES,
    Interval,
    Probe,
    Probed,
    Selectivity,
    control_labels,
    fit_probe,
    group_folds,
    over_groups,
    probe,
    selectivity,
    shuffle_among_groups,
)
from jattn.interpret.views import attention_map, head_grid, token_highlight

__all__ = [
    "PENALTIES",
    "Add",
    "CalibrateColumns",
    "CalibrateSinks",
    "Captured",
    "Difference",
    "DropColumns",
    "Edit",
    "Interval",
    "Mean",
    "Overlap",
    "OverrideRow",
    "Probe",
    "Probed",
    "Receiver",
    "Resample",
    "Rescale",
    "Scale",
    "Selectivity",
    "Set",
    "Where",
    "attention_map",
    "attribute_heads",
    "capture",
    "control_labels",
    "edit",
    "fit_probe",
    "group_folds",
    "head_grid",
    "mask_heads",
    "mean_column_weights",
    "one_head_each",
    "over_groups",
    "overlap",
    "paired_bootstrap",
    "patching_effect",
    "path_patch",
    "permutation_p_value",
    "probe",
    "random_heads",
    "selectivity",
    "shuffle_among_groups",
    "token_highlight",
]
