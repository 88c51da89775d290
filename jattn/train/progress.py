"""How far training is: a live bar on a terminal, a line now and then in a log file."""

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0

log = logging.getLogger("jattn")


class TrainingProgress:
    """Loss, speed and time left of one stage."""

    def __init__(self, stage: str, start: int, steps: int, *, quiet: bool):
        self._stage, self._start, self._steps = stage, start, steps
        self._began = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._live = console.is_terminal and not quiet
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4g}  {task.fields[speed]:.0f} steps/s  left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        self._task = self._bar.add_task(
            self._stage, total=self._steps, completed=self._start, loss=float("nan"), speed=0.0
        )
        return self

    def update(self, step: int, loss: float) -> None:
        now = time.monotonic()
        speed = (step - self._start) / max(now - self._began, 1e-9)
        self._bar.update(self._task, completed=step, loss=loss, speed=speed)
        if not self._live and not self._quiet and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (self._steps - step) / speed
            log.info(
                "%s: step %d of %d, loss %.4g, %.0f steps/s, %.0f s left",
                self._stage, step, self._steps, loss, speed, left,
            )  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
