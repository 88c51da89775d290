"""What the papers claim, with the bars set before anything was run, and how each is measured.

The papers: Qin et al., arXiv 2307.14995 (TransNormerLLM) and ICML 2024, arXiv 2405.17381 (lightning attention). Their
smallest model has 385M parameters and is trained on a corpus of their own.
"""

import numpy as np
from jaxtyping import Float

from experiments.lightning.config import Config
from experiments.lightning.measure import Seconds, exponent, flatness
from jattn.runs import Bar, Claim, Run

PerSeed = Float[np.ndarray, " seeds"]

QUALITY = Claim(
    "no worse than softmax",
    "bits per byte of TransNormer over those of a softmax decoder of as many parameters",
    "loss 2.248 / 2.362 = 0.952 at 385M",
    Bar(high=1.02),
    "the same TransNormer made to forget at once (decay 0)",
)
DECAY = Claim(
    "decay helps",
    "bits per byte without decay less those with it",
    "positions by decay and one rotary layer are the best of its ablation",
    Bar(low=0.01),
    "with decay, but left out when tested, in place of those with it",
)
GATE = Claim(
    "the gate helps",
    "bits per byte without the gate less those with it",
    "loss 2.263 - 2.248 = 0.015 nats",
    Bar(low=0.0),
    "with the gate, but left out when tested, in place of those with it",
)
ACTIVATION = Claim(
    "the activation helps",
    "bits per byte without activation of queries and keys less those with it",
    "loss 2.283 - 2.248 = 0.035 nats",
    Bar(low=0.0),
    "with it, but left out when tested, in place of those with it",
)
FLAT = Claim(
    "time per token does not grow with length",
    "longest time over shortest of a fixed number of tokens, forward and backward, in sequences of every length",
    "tokens per second level from 1K to 128K",
    Bar(high=1.3),
    "softmax attention",
)
LINEAR = Claim(
    "time is linear in length",
    "slope of log time against log length of one sequence, forward and backward",
    "linear",
    Bar(low=0.85, high=1.15),
    "softmax attention",
)
CONSTANT = Claim(
    "decoding carries a constant state",
    "bytes carried after the longer of the two prompts over those after the shorter",
    "constant",
    Bar(high=1.0),
    "keys and values of the softmax decoder",
)


def settle(
    run: Run,
    config: Config,
    bits: dict[str, PerSeed],
    forgetful: PerSeed,
    left_out: dict[str, PerSeed],
    together: Seconds,
    alone: Seconds,
    carried: dict[str, tuple[int, int]],
) -> None:
    """Judge the claims.

    Args:
      bits: per byte of test documents, by arm.
      forgetful: bits of the arm "lightning" made to forget at once.
      left_out: bits of that arm with what another arm lacks left out when tested.
      together, alone: seconds of a fixed number of tokens, and of one sequence.
    """
    softmax, ours = bits["softmax"], bits["lightning"]
    told = f"bits per byte: {', '.join(f'{arm} {each.mean():.4f}' for arm, each in bits.items())}"
    run.settle(QUALITY, ours / softmax, forgetful / softmax, told)
    for claim, arm in ((DECAY, "no_decay"), (GATE, "no_gate"), (ACTIVATION, "no_activation")):
        run.settle(claim, bits[arm] - ours, bits[arm] - left_out[arm], told)
    run.settle(FLAT, flatness(together["lightning"]), flatness(together["softmax"]))
    lengths = config.timed_lengths
    run.settle(LINEAR, exponent(lengths, alone["lightning"]), exponent(lengths, alone["softmax"]))
    of_state, of_cache = (last / first for first, last in (carried["lightning"], carried["softmax"]))
    run.settle(CONSTANT, of_state, of_cache)
