"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Jin, Zhu, Yuan and Yan, ICML 2025, arXiv 2410.11842. Its language models have 0.2 to 1 billion parameters
and up to 300 billion tokens; what is claimed here is the order of the arms on a small text, in bits per byte.
"""

import numpy as np
from jaxtyping import Float

from experiments.mixture_of_heads.config import MULTI_HEAD
from experiments.mixture_of_heads.measure import independence, unevenness
from jattn.runs import Bar, Claim, Run

PerSeed = Float[np.ndarray, " seeds"]

THREE_QUARTERS = Claim(
    "three quarters of the heads are as good",
    "bits per byte of the mixture that runs 75 % of its heads, less those of multi-head attention",
    "LLM-S, average of tasks: 44.6 with 75 %, about 43.9 with all heads",
    Bar(high=0.01),
    "multi-head attention without a random quarter of its heads",
)
HALF = Claim(
    "half of the heads is nearly as good",
    "bits per byte of the mixture that runs 50 % of its heads, less those of multi-head attention",
    "LLM-S, average of tasks: 45.4 with 50 %, about 43.9 with all heads",
    Bar(high=0.03),
    "multi-head attention without a random half of its heads",
)
CHOSEN = Claim(
    "which heads are run matters",
    "bits per byte of multi-head attention without a random half of its heads, less those of the mixture of 50 %",
    "heads are unequally useful, and routers are trained",
    Bar(low=0.1),
    "multi-head attention with all its heads",
)
SPECIALISED = Claim(
    "heads specialise",
    "p-value of a chi-square test of head against class of byte, the least clear layer, half of the heads run",
    "heads' loads differ between classes of images and kinds of tasks",
    Bar(high=0.001),
    "classes shuffled among tokens",
)
BALANCED = Claim(
    "routed heads share the work",
    "largest |log₂| of a routed head's use over even use, half of the heads run",
    "balance loss of weight 0.01",
    Bar(high=1.0),
    "trained without the balance loss",
)
CONVERTED = Claim(
    "a trained model can be converted",
    "bits per byte of the multi-head model tuned as a mixture of 75 % by query norms, less those of it trained on",
    "64.8 against 64.7 in the average of tasks with LLaMA3-8B",
    Bar(high=0.02),
    "converted and not tuned",
)
IMAGES = Claim(
    "half of the heads is enough for images",
    "share of test digits told apart by multi-head attention, less that of the mixture that runs 50 % of its heads",
    "ImageNet: TransNeXt-B 84.8 %, with 75 % of its heads 84.9 %, with 50 % 84.7 %",
    Bar(high=0.01),
    "multi-head attention without a random half of its heads",
)


def settle(
    run: Run, bits: dict[str, PerSeed], use: Float[np.ndarray, "..."], shuffled: Float[np.ndarray, "..."],
    unbalanced: Float[np.ndarray, "..."],
) -> None:  # fmt: skip
    """Judge every claim.

    Args:
      bits: of every arm and what was made of them.
      use: of heads by classes in the arm of 50 %, and `shuffled` with classes that say nothing.
      unbalanced: of the arm that is trained without the balance loss.
    """
    every = bits[MULTI_HEAD]
    run.settle(THREE_QUARTERS, bits["mixture_75"] - every, bits["without_a_quarter"] - every)
    run.settle(HALF, bits["mixture_50"] - every, bits["without_a_half"] - every)
    run.settle(CHOSEN, bits["without_a_half"] - bits["mixture_50"], every - bits["mixture_50"])
    run.settle(SPECIALISED, independence(use), independence(shuffled))
    run.settle(BALANCED, unevenness(use), unevenness(unbalanced))
    continued = bits["continued"]
    run.settle(CONVERTED, bits["converted"] - continued, bits["untuned"] - continued)


def settle_images(run: Run, accuracy: dict[str, PerSeed]) -> None:
    """Judge the claim on images.

    Args:
      accuracy: of `experiments.mixture_of_heads.images.run_images`.
    """
    whole = accuracy["multi_head"]
    run.settle(IMAGES, whole - accuracy["mixture_50"], whole - accuracy["without_a_half"])
