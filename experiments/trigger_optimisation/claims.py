"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Sun, Zhang, Lu, Chen, Wang, Chen and Lin, ICLR 2024, arXiv 2404.07863. Its images, encoders and training are
hundreds of times as large; what is tested is the order of triggers, and what the optimisation through a training run
adds. Success is the share of triggered test images of other classes that a probe takes for the target class, the mean
over victims of all methods that both of two compared arms have.
"""

import numpy as np
from jaxtyping import Float

from experiments.trigger_optimisation.config import (
    BLTO,
    BRIGHT,
    CLEAN,
    FROZEN_CLEAN,
    FROZEN_RANDOM,
    PATCH,
    SINUSOID,
    SURROGATE,
    TRANSFER,
    TRUNCATED,
)
from jattn.runs import Bar, Claim, Run

PerSeed = Float[np.ndarray, " seeds"]

GAP = 0.02
"""Of success, that an arm must be above another in the whole interval."""

WORKS = Claim(
    "the trigger works",
    "success of BLTO",
    "99 % on ImageNet-100 with 1 % poisoned",
    Bar(low=0.5),
    "epsilon = 0",
)
PLANTED = Claim(
    "poisoned images plant it",
    "success of BLTO against its victims less that against victims of clean images",
    "not in the paper",
    Bar(low=GAP),
    "victims poisoned with the fixed patch in place of BLTO's",
)
ABOVE_FROZEN = Claim(
    "the inner run is needed",
    "success of BLTO less that of generators against a frozen clean encoder",
    "no figure; a reviewer asked for it",
    Bar(low=GAP),
    "epsilon = 0 in BLTO's place",
)
ABOVE_RANDOM = Claim(
    "so is a trained encoder",
    "success of BLTO less that of generators against a frozen random encoder",
    "no figure",
    Bar(low=GAP),
    "epsilon = 0 in BLTO's place",
)
ABOVE_FIXED = Claim(
    "learned triggers are better than fixed ones",
    "success of generators against a frozen clean encoder less that of the better of patch and sinusoid",
    "fixed triggers well below BLTO",
    Bar(low=GAP),
    "epsilon = 0 in the generators' place",
)
AS_ACCURATE = Claim(
    "clean accuracy stays",
    "accuracy of clean encoders less that of BLTO's victims",
    "about a point",
    Bar(high=0.02),
    "a probe of untrained encoders in the victims' place",
)
AT_CHANCE = Claim(
    "without a change there is no success",
    "success at epsilon = 0",
    "not in the paper",
    Bar(high=0.1),
    "BLTO",
)
RISES = Claim(
    "outer steps raise the outer objective",
    "S after a round's outer steps less S before, mean of rounds",
    "no figure",
    Bar(low=1e-3),
    "S to images of other classes than the target",
)
STAYS_HIGH = Claim(
    "the trigger outlives the surrogate",
    "S in the first round after the surrogate began anew, before its outer steps, less S of the untrained generator",
    "no figure",
    Bar(low=0.05),
    "S to images of other classes in its place",
)
NEAR_TARGET = Claim(
    "triggered features are near the target",
    "E ‖u - r‖² to the target class, triggered over clean images of other classes, at the end of victims' training",
    "figures of features",
    Bar(high=0.5),
    "the fixed patch",
)
LESS_SPREAD = Claim(
    "uniformity does not spread triggered images",
    "uniformity loss of triggered images less that of the same images clean, at the end of victims' training",
    "a fixed trigger is spread, a learned one is not",
    Bar(low=0.2),
    "the fixed patch",
)
TRANSFERS = Claim(
    "the trigger transfers to another architecture",
    "success against residual victims",
    "ResNet-34 and -50, MobileNet, ShuffleNet, SqueezeNet: high",
    Bar(low=0.3),
    "epsilon = 0, the surrogate's architecture",
)
EVADES = Claim(
    "a spectral filter does not find the poisoned images",
    "area under the ROC of spectral scores in the target class",
    "evades the defences tried",
    Bar(high=0.7),
    "a patch of full contrast",
)
DIRECT_TERM = Claim(
    "the direct term of the hypergradient suffices",
    "success with the truncated hypergradient less that with the direct term, SimSiam victims",
    "the other term is dropped; a reviewer asked",
    Bar(high=0.05),
    "the direct term less epsilon = 0, as if the latter were dropped",
)


def settle(
    run: Run,
    success: dict[str, dict[str, PerSeed]],
    accuracy: dict[str, dict[str, PerSeed]],
    fooled: dict[str, PerSeed],
    untrained: PerSeed,
    similarities: dict[str, Float[np.ndarray, "rounds seeds"]],
    ends: dict[str, dict[str, Float[np.ndarray, "seeds 2"]]],
    spectral: dict[str, PerSeed],
    period: int,
) -> None:
    """Judge every claim whose arms were run.

    Args:
      success, accuracy: by arm and method.
      fooled: success of BLTO's triggers against victims of other arms, the mean of methods.
      untrained: accuracy of a probe of untrained encoders.
      similarities: `alternation.Similarities` of BLTO.
      ends: `victims.History` at the end of training, the mean of methods, clean and triggered, by arm.
      spectral: detection by arm, SimSiam victims.
      period: rounds between surrogates.
    """
    told = "success: " + ", ".join(
        f"{arm} {np.mean(list(each.values())):.3f} ({len(each)})" for arm, each in success.items()
    )

    def above(arm: str, other: str) -> PerSeed:
        """Success of one less that of another, the mean of the methods that both have."""
        shared = success[arm].keys() & success[other].keys()
        return np.mean([success[arm][method] - success[other][method] for method in sorted(shared)], axis=0)

    works, chance = (np.mean(list(success[arm].values()), axis=0) for arm in (BLTO, CLEAN))
    run.settle(WORKS, works, chance, told)
    if PATCH in fooled:
        run.settle(PLANTED, works - fooled[CLEAN], fooled[PATCH] - fooled[CLEAN])
    right, clean = (np.mean(list(accuracy[arm].values()), axis=0) for arm in (BLTO, CLEAN))
    run.settle(AS_ACCURATE, clean - right, clean - untrained)
    run.settle(AT_CHANCE, chance, works, told)
    for claim, arm in ((ABOVE_FROZEN, FROZEN_CLEAN), (ABOVE_RANDOM, FROZEN_RANDOM)):
        if arm in success:
            run.settle(claim, above(BLTO, arm), above(CLEAN, arm), told)
    if {FROZEN_CLEAN, PATCH, SINUSOID} <= set(success):
        learned, none = (np.minimum(above(arm, PATCH), above(arm, SINUSOID)) for arm in (FROZEN_CLEAN, CLEAN))
        run.settle(ABOVE_FIXED, learned, none, told)
    rise, others = (similarities[f"{each}after"] - similarities[f"{each}before"] for each in ("", "others_"))
    run.settle(RISES, rise.mean(axis=0), others.mean(axis=0))
    gained, control = (similarities[name] - similarities["untrained"] for name in ("before", "others_before"))
    if len(gained) > period:
        run.settle(STAYS_HIGH, *(each[period::period].mean(axis=0) for each in (gained, control)))
    if PATCH in ends:
        nearer = {arm: ends[arm]["distance"][:, 1] / ends[arm]["distance"][:, 0] for arm in (BLTO, PATCH)}
        run.settle(NEAR_TARGET, nearer[BLTO], nearer[PATCH])
        denser = {arm: ends[arm]["uniformity"][:, 1] - ends[arm]["uniformity"][:, 0] for arm in (BLTO, PATCH)}
        run.settle(LESS_SPREAD, denser[BLTO], denser[PATCH])
    if TRANSFER in success:
        run.settle(TRANSFERS, success[TRANSFER][SURROGATE], success[CLEAN][SURROGATE])
    if BRIGHT in spectral:
        run.settle(EVADES, spectral[BLTO], spectral[BRIGHT])
    if TRUNCATED in success:
        run.settle(DIRECT_TERM, above(TRUNCATED, BLTO), above(BLTO, CLEAN), told)
