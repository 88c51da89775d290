"""Benchmarks: ratios of medians, the contenders run in turn within one process."""

from jattn.bench.attention import measure_attention
from jattn.bench.bilevel import measure_bilevel
from jattn.bench.block_sparse import measure_block_sparse
from jattn.bench.decoder import measure_decoder
from jattn.bench.features import measure_features
from jattn.bench.hypergradient import measure_hypergradient
from jattn.bench.scaling import measure_scaling
from jattn.bench.train import measure_training

BENCHMARKS = {
    "attention": ("attention on one core: ratios of CPU time, and of bytes", measure_attention),
    "bilevel": ("iterations of LV-HBA on one core: ratios of CPU time", measure_bilevel),
    "block-sparse": (
        "listed blocks on one core: over their share of dense attention",
        measure_block_sparse,
    ),
    "decoder": ("a pretrained decoder on one core: from file to logits, prompts and decoding", measure_decoder),
    "features": ("which derivatives of attention there are, and right", measure_features),
    "hypergradient": ("hypergradients on one core: ratios of CPU time, and of bytes", measure_hypergradient),
    "scaling": ("time and memory against length, on one core", measure_scaling),
    "train": ("training loop against a bare jitted loop", measure_training),
}
"""What `jattn bench` offers: name -> (title, function that returns rows)."""
