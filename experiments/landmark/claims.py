"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Mohtashami and Jaggi, NeurIPS 2023, arXiv 2305.16300. Its models have 12 layers, read 512 tokens of books
and of mathematics in training and up to 4,096 in the test; here a small one reads bytes of Python's documentation
and library.
"""

import numpy as np
from jaxtyping import Bool, Float

from jattn.runs import Bar, Claim, Run

ByPlace = Float[np.ndarray, "seeds _"]
PerSeed = Float[np.ndarray, " seeds"]

RETRIEVAL_HELPS = Claim(
    "what is retrieved helps",
    "bits per byte of long windows with no block retrieved, less those with blocks retrieved",
    "perplexity falls from 16.23 at 512 tokens to 14.72 at 4,096, with 80 blocks of which 4 are read",
    Bar(low=0.002),
    "before training",
)
CHOICE_MATTERS = Claim(
    "landmarks choose better than chance",
    "bits per byte of long windows with random blocks, less those with the blocks of the highest landmarks",
    "landmarks learn which blocks are relevant",
    Bar(low=0.002),
    "random blocks, less other random blocks",
)
NO_BLOW_UP = Claim(
    "text longer than in training does no harm",
    "bits per byte of the second half of long windows, less those of their first bytes, as many as trained on",
    "perplexity falls up to 8 times the length of training",
    Bar(high=0.05),
    "plain attention over the whole window",
)
TRAINS_AS_WELL = Claim(
    "landmarks cost nothing in training",
    "perplexity of bytes at the length of training, over that of plain attention",
    "16.23 over 16.12, with less context",
    Bar(high=1.03),
    "before training",
)

PASS_KEY = Claim(
    "a pass key is read from far",
    "share of keys of 5 digits written without a mistake at the end of windows several times as long as in training",
    "a tuned LLaMA-7B reads about all to 16K tokens and 98 % at 32K",
    Bar(low=0.8),
    "no block retrieved",
)
ONLY_RETRIEVED = Claim(
    "a pass key is read by what is retrieved",
    "share of its digits that are right with no block retrieved, where chance has 0.1",
    "near nothing past the length of training without landmarks",
    Bar(high=0.2),
    "blocks retrieved",
)


def settle(
    run: Run, short: dict[str, PerSeed], long: dict[str, ByPlace], before: dict[str, ByPlace], trained_on: int
) -> None:
    """Judge every claim.

    Args:
      short: bits per byte of windows of the length of training: both arms', and the landmark model's before training.
      long: bits by place in long windows: "retrieved", "local", "random", "other random", and "plain" at once.
      before: of the landmark model before training: "retrieved", "local".
    """
    total = {name: bits.mean(axis=1) for name, bits in long.items()}
    earlier = {name: bits.mean(axis=1) for name, bits in before.items()}
    told = f"bits per byte of long windows: {', '.join(f'{name} {each.mean():.4f}' for name, each in total.items())}"
    run.settle(RETRIEVAL_HELPS, total["local"] - total["retrieved"], earlier["local"] - earlier["retrieved"], told)
    run.settle(CHOICE_MATTERS, total["random"] - total["retrieved"], total["random"] - total["other random"], told)
    run.settle(NO_BLOW_UP, rise(long["retrieved"], trained_on), rise(long["plain"], trained_on), told)
    excess = {name: 2 ** (bits - short["plain"]) for name, bits in short.items()}
    run.settle(TRAINS_AS_WELL, excess["landmark"], excess["before training"])


def settle_pass_key(run: Run, right: dict[str, Bool[np.ndarray, "seeds windows digits"]], length: int) -> None:
    """Judge the claims of pass keys.

    Args:
      right: which digits are right: "retrieved, {length} bytes", "local", and others to tell of.
      length: of the windows that claims are on.
    """
    keys = {name: each.all(axis=-1).mean(axis=1) for name, each in right.items()}
    digits = {name: each.mean(axis=(1, 2)) for name, each in right.items()}
    told = ", ".join(f"{name} {keys[name].mean():.3f} ({digits[name].mean():.3f})" for name in right)
    told = f"share of keys (of digits): {told}"
    retrieved = f"retrieved, {length} bytes"
    run.settle(PASS_KEY, keys[retrieved], keys["local"], told)
    run.settle(ONLY_RETRIEVED, digits["local"], digits[retrieved], told)


def rise(bits: ByPlace, trained_on: int) -> Float[np.ndarray, " seeds"]:
    """Mean over the second half of windows, less that over their first bytes."""
    return bits[:, bits.shape[1] // 2 :].mean(axis=1) - bits[:, :trained_on].mean(axis=1)
