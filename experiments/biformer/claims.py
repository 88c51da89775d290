"""What the paper claims, with the bars set before anything was run, and how each is measured.

The paper: Zhu, Wang, Ke, Zhang and Lau, CVPR 2023, arXiv 2303.08810. Its accuracies are of ImageNet, which is not to be
had here; what is claimed is the order of the arms where an answer needs regions that only content tells.
"""

import numpy as np
from jaxtyping import Float

from experiments.biformer.config import FULL, RANDOM, READ, WINDOW, Config, routed
from experiments.biformer.measure import attention_work, excess_of_work
from jattn.runs import Bar, Claim, Run

PerSeed = Float[np.ndarray, " seeds"]

SIZES = tuple((side, top_k) for side in (28, 56, 112) for top_k in (1, 4, 16))
"""Of maps and lists for which the work is counted."""

AS_GOOD = Claim(
    "routed regions are as good as all",
    f"accuracy of full attention less that of attention to {READ} routed regions",
    "BiFormer-STL 82.7 % on ImageNet; no table has full attention beside it",
    Bar(high=0.03),
    "windows: each region reads itself alone",
)
ABOVE_WINDOWS = Claim(
    "routing finds what windows do not see",
    f"accuracy of {READ} routed regions less that of windows",
    "BiFormer-STL 82.7 % against Swin-T 81.3 % on ImageNet",
    Bar(low=0.05),
    "the routed models with random regions in place of those routed to",
)
ABOVE_RANDOM = Claim(
    "which regions are read matters",
    f"accuracy of {READ} routed regions less that of models trained with {READ} random ones",
    "content decides what is read",
    Bar(low=0.05),
    "the routed models with random regions in place of those routed to",
)
BY_CONTENT = Claim(
    "regions read regions like themselves",
    "of other regions read, the share that shows the same class over the share among all, the block where it is most",
    "figures of regions that belong together",
    Bar(low=1.5),
    "before training",
)
ALL_REGIONS = Claim(
    "with all regions read it is full attention",
    "largest difference of logits if weights of the full arm read all regions by lists",
    "k = S² is full attention",
    Bar(high=1e-3),
    "half of the regions read",
)
LESS_WORK = Claim(
    "reading few regions is less work",
    f"multiply-adds of routing and attention with {READ} regions over those of full attention",
    "k·HW/S² keys a query instead of HW",
    Bar(high=0.35),
    "all regions read by lists",
)
BEST_DIVISION = Claim(
    "how many regions is best has a formula",
    f"multiply-adds with the division nearest to (k (HW)²)^(1/6), over the least; the worst of {len(SIZES)} sizes",
    "O((HW)^(4/3)) with the best division",
    Bar(high=1.05),
    "7 regions a side, as in the released models",
)


def settle(
    run: Run,
    config: Config,
    accuracy: dict[str, PerSeed],
    displaced: PerSeed,
    alike: tuple[PerSeed, PerSeed],
    differences: tuple[PerSeed, PerSeed],
) -> None:
    """Judge every claim.

    Args:
      accuracy: of every arm.
      displaced: of the routed models that read random regions when tested.
      alike: how much more regions read their like than by chance, after training and before.
      differences: of logits with all regions read by lists, and with half.
    """
    chosen = accuracy[routed(READ)]
    run.settle(AS_GOOD, accuracy[FULL] - chosen, accuracy[FULL] - accuracy[WINDOW])
    run.settle(ABOVE_WINDOWS, chosen - accuracy[WINDOW], displaced - accuracy[WINDOW])
    run.settle(ABOVE_RANDOM, chosen - accuracy[RANDOM], displaced - accuracy[RANDOM])
    run.settle(BY_CONTENT, *alike)
    run.settle(ALL_REGIONS, *differences)
    full = attention_work(config, FULL)
    run.settle(
        LESS_WORK,
        attention_work(config, routed(READ)) / full,
        attention_work(config, routed(config.regions)) / full,
    )
    run.settle(
        BEST_DIVISION,
        max(excess_of_work(side, top_k) for side, top_k in SIZES),
        max(excess_of_work(side, top_k, regions=7) for side, top_k in SIZES),
    )
