"""Training: one loop for every model, with checkpoints, resuming and many seeds at once."""

from jattn.train.loop import Fitted, Mapped, NonFiniteError, Schedule, fit, mapped
from jattn.train.optimiser import adamw_with_warm_up
from jattn.train.state import Generated, TrainState, create_state

__all__ = [
    "Fitted",
    "Generated",
    "Mapped",
    "NonFiniteError",
    "Schedule",
    "TrainState",
    "adamw_with_warm_up",
    "create_state",
    "fit",
    "mapped",
]
