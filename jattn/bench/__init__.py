"""Benchmarks: ratios of medians, the contenders run in turn within one process."""

from jattn.bench.train import measure_training

BENCHMARKS = {"train": ("training loop against a bare jitted loop", measure_training)}
"""What `jattn bench` offers: name -> (title, function that returns rows)."""
