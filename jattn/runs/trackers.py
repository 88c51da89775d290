"""Writers that copy metrics to the trackers people watch. The record itself is `jattn.runs.metrics`."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from jattn.runs.metrics import MetricWriter


class TensorBoard:
    """TensorBoard event files, one directory a stage."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        if stage not in self._writers:
            # purge_step hides what a killed process wrote beyond the checkpoint that was resumed.
            self._writers[stage] = SummaryWriter(str(self._directory / stage), purge_step=step)
        for name, value in scalars.items():
            self._writers[stage].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases:
    """A Weights & Biases run (extra `wandb`); the run directory's name is its id, so a resumed run goes on in it."""

    def __init__(self, directory: Path):
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(project="jattn", id=directory.name, dir=str(directory), resume="allow")

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        # Steps restart with each stage, so each stage has its own step metric.
        self._run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in scalars.items()}})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run (extra `mlflow`) at the tracking address MLflow itself is configured with."""

    def __init__(self, directory: Path):
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow = mlflow
        mlflow.set_experiment("jattn")
        found = mlflow.search_runs(filter_string=f"tags.jattn_run = '{directory.name}'", output_format="list")
        mlflow.start_run(run_id=found[0].info.run_id if found else None, tags={"jattn_run": directory.name})

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({f"{stage}/{name}": value for name, value in scalars.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def open_tracker(name: str, directory: Path) -> MetricWriter:
    """The named tracker writing for this run directory.

    Raises:
      ValueError: an unknown name, or a tracker whose package is not installed; the message says what to install.
    """
    if name not in TRACKERS:
        raise ValueError(f"tracker must be one of {', '.join(TRACKERS)}; got {name!r}")
    if name == "tensorboard":
        return TensorBoard(directory / "tensorboard")
    try:
        return TRACKERS[name](directory)
    except ImportError as error:
        raise ValueError(f"tracker {name} needs its package: pip install 'jattn[{name}]' ({error})") from error
