"""What is spread over devices: batches, and attention over sequences too long for one."""

from jattn.distributed.batch import batch_mesh, mean_over_batch, on_every_device, on_one_device
from jattn.distributed.ring import ring_attention, sequence_parallel_attention
from jattn.distributed.zigzag import unzigzag, zigzag

__all__ = [
    "batch_mesh",
    "mean_over_batch",
    "on_every_device",
    "on_one_device",
    "ring_attention",
    "sequence_parallel_attention",
    "unzigzag",
    "zigzag",
]
