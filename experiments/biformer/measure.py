"""What is measured on trained models beside their accuracy, and what attention over regions costs."""

from math import log

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from experiments.biformer.config import Config
from experiments.biformer.model import Counter, build
from experiments.biformer.mosaics import Mosaics
from jattn.models.biformer import attention_multiply_adds


def lists_of(model: Counter, mosaics: Mosaics) -> list[Int[Array, "count regions top_k"]]:
    """Which regions each region reads in every block."""
    model.eval()
    _, _, routings = model(mosaics.images)
    return [routing.lists for routing in routings]


def share_of_class(lists: Int[Array, "count regions top_k"], classes: Int[Array, "count regions"]) -> Float[Array, ""]:
    """Of the other regions that are read the share that shows the reading region's class, over that share among all.

    1 if regions are chosen at random.
    """
    own = jnp.arange(classes.shape[1])[:, None]
    alike = jnp.take_along_axis(classes[:, None], lists, axis=2) == classes[..., None]
    other = lists != own
    everywhere = (classes[:, :, None] == classes[:, None]) & ~jnp.eye(classes.shape[1], dtype=bool)
    chance = everywhere.sum() / (classes.size * (classes.shape[1] - 1))
    return (alike & other).sum() / jnp.maximum(other.sum(), 1) / chance


def differences_as(arms: tuple[str, ...], config: Config, model: Counter, mosaics: Mosaics) -> Float[Array, " arms"]:
    """The largest difference that a model's logits have if its weights are read by the attention of each other arm.

    The other's regions are gathered by its lists, however it is trained.
    """
    model.eval()
    want = model(mosaics.images)[:2]

    def difference(arm: str) -> Float[Array, ""]:
        other = nnx.eval_shape(lambda: build(config, arm, nnx.Rngs(0)))
        nnx.update(other, nnx.state(model, (nnx.Param, nnx.BatchStat)))
        other.set_attributes(access="gathered", raise_if_not_found=False)
        other.eval()
        have = other(mosaics.images)[:2]
        return jnp.stack([jnp.abs(a - b).max() for a, b in zip(have, want, strict=True)]).max()

    return jnp.stack([difference(arm) for arm in arms])


def attention_work(config: Config, arm: str) -> int:
    """Multiply-adds of routing and attention for one mosaic."""
    total, side = 0, config.side
    for depth, width in zip(config.depths, config.widths, strict=True):
        entries = config.entries(arm)
        regions = 1 if entries is None else config.tiles
        total += depth * width * attention_multiply_adds((side // regions) ** 2, regions, entries or 1)
        side //= 2
    return total


def best_regions(side: int, top_k: int) -> float:
    """Regions on a side for the least work on a map of side x side tokens, by the derivative of S⁴ + 2k(HW)²/S²."""
    return (top_k * side**4) ** (1 / 6)


def excess_of_work(side: int, top_k: int, regions: int | None = None) -> float:
    """Multiply-adds over the least that any division of the side without a rest has.

    Args:
      regions: on a side; None: the division nearest to `best_regions`, by ratio.
    """
    possible = [each for each in range(1, side + 1) if side % each == 0 and each**2 >= top_k]
    if regions is None:
        best = best_regions(side, top_k)
        regions = min(possible, key=lambda each: abs(log(each / best)))
    work = {each: attention_multiply_adds((side // each) ** 2, each, top_k) for each in possible}
    return work[regions] / min(work.values())


def majority(mosaics: Mosaics) -> float:
    """The share of the most frequent answer."""
    answers = np.asarray(jax.device_get(mosaics.answers)).reshape(-1)
    return float(np.bincount(answers).max() / answers.size)
