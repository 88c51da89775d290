"""Benchmarks: ratios of medians, the contenders run in turn within one process."""

from jattn.bench.attention import measure_attention
from jattn.bench.train import measure_training

BENCHMARKS = {
    "attention": ("attention on one core: ratios of CPU time, and of bytes", measure_attention),
    "train": ("training loop against a bare jitted loop", measure_training),
}
"""What `jattn bench` offers: name -> (title, function that returns rows)."""
