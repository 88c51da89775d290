"""Runs: experiments, their claims, and the directory that holds everything one run of an experiment leaves."""

from jattn.runs.checkpoints import Best, CheckpointError
from jattn.runs.claim import Bar, Claim, Verdict, judge
from jattn.runs.directory import Run, RunError, Stage, Stopped, open_run
from jattn.runs.experiment import Experiment, Paper, Preset, discover, load_experiment

__all__ = [
    "Bar",
    "Best",
    "CheckpointError",
    "Claim",
    "Experiment",
    "Paper",
    "Preset",
    "Run",
    "RunError",
    "Stage",
    "Stopped",
    "Verdict",
    "discover",
    "judge",
    "load_experiment",
    "open_run",
]
