"""The models that are trained: alike but for which regions a region reads."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from experiments.biformer.config import ANSWERS, CHUNK, RANDOM, READ, WINDOW, Config
from experiments.biformer.mosaics import Mosaics
from jattn.mechanisms import RegionRouting, cut_regions
from jattn.models.biformer import BiFormer


class Counter(nnx.Module):
    """BiFormer with logits of answers, and of what is shown, for every tile instead of the whole image.

    Attributes:
      lists: of each block what is read instead of what is routed to, in arms that do not route; not trained.
    """

    def __init__(self, config: Config, arm: str, rngs: nnx.Rngs):
        self.tiles = config.tiles
        self.body = BiFormer(config.body(arm), rngs=rngs)
        self.lists = _lists(config, arm, rngs)

    def __call__(
        self, images: Float[Array, "batch height width 1"], lists: Int[Array, "blocks regions top_k"] | None = None
    ) -> tuple[Float[Array, "batch tiles answers"], Float[Array, "batch tiles classes"], tuple[RegionRouting, ...]]:
        """Logits of the answers, of the classes, and the routing of every block; `lists` overrule those of the arm."""
        if lists is None and self.lists is not None:
            lists = self.lists[...]
        features, routings = self.body.features(images, None if lists is None else [each[None] for each in lists])
        logits = self.body.logits(cut_regions(features, self.tiles).mean(axis=2))
        return logits[..., :ANSWERS], logits[..., ANSWERS:], routings


def build(config: Config, arm: str, rngs: nnx.Rngs) -> Counter:
    return Counter(config, arm, rngs)


def _lists(config: Config, arm: str, rngs: nnx.Rngs) -> nnx.Variable | None:
    if arm == WINDOW:
        own = jnp.arange(config.regions)[:, None]
        return nnx.Variable(jnp.broadcast_to(own, (sum(config.depths), config.regions, 1)))
    return nnx.Variable(random_lists(config, rngs.params())) if arm == RANDOM else None


def random_lists(config: Config, key: Array) -> Int[Array, "blocks regions 4"]:
    """For each block and region four regions, none twice."""
    order = jax.random.uniform(key, (sum(config.depths), config.regions, config.regions))
    return jax.lax.top_k(order, READ)[1]


def loss(naming: float, model: Counter, mosaics: Mosaics) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the answers, and that of the classes times `naming`; the accuracy of both.

    From the answers alone no arm learned anything in trials of thousands of steps: pictures must be told apart first.
    """
    answers, classes, _ = model(mosaics.images)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    value = entropy(answers, mosaics.answers).mean() + naming * entropy(classes, mosaics.classes).mean()
    return value, {
        "accuracy": (answers.argmax(axis=-1) == mosaics.answers).mean(),
        "named": (classes.argmax(axis=-1) == mosaics.classes).mean(),
    }


def accuracy(
    model: Counter, mosaics: Mosaics, lists: Int[Array, "blocks regions top_k"] | None = None
) -> dict[str, Float[Array, ""]]:
    """The share of answers, and of classes, that are right; with `lists`, if those are read in place of its own."""
    model.eval()
    graph, state = nnx.split(model)

    def right(chunk: Mosaics) -> dict[str, Array]:
        answers, classes, _ = nnx.merge(graph, state)(chunk.images, lists)
        return {
            "accuracy": (answers.argmax(axis=-1) == chunk.answers).mean(),
            "named": (classes.argmax(axis=-1) == chunk.classes).mean(),
        }

    chunks = jax.tree.map(lambda each: each.reshape(-1, CHUNK, *each.shape[1:]), mosaics)
    return jax.tree.map(partial(jnp.mean, axis=0), jax.lax.map(right, chunks))
