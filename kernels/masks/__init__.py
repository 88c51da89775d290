"""Masks: which query may read which key, as small values that combine with `&`, `|` and `~`.

A mask is defined once, by what it says of one pair of positions (`allowed`), and used in three views: the dense
array (`dense`), the values of one tile, and the class of a tile (`coverage`: it may allow something, it surely
allows everything), by which schedulers skip empty tiles and do no masking in full ones. Query i and key j are
counted from 0. Where a mask compares the two it says how they are aligned when there are more keys than queries:
`"start"` lines up the first of each, `"end"` the last, and a number (or an array of one, or one a batch entry) is
the key position of query 0. Masks are pytrees: what is an array may be traced and mapped, the rest is static.
"""

from kernels.masks.algebra import And, Mask, Not, Or
from kernels.masks.arrays import Blocks, Dense, Segments, Where
from kernels.masks.block_table import BlockTable
from kernels.masks.positions import At, Causal, Lengths, Local, Prefix, Window

__all__ = [
    "And",
    "At",
    "BlockTable",
    "Blocks",
    "Causal",
    "Dense",
    "Lengths",
    "Local",
    "Mask",
    "Not",
    "Or",
    "Prefix",
    "Segments",
    "Where",
    "Window",
]
