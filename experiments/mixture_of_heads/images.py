"""Images: vision transformers that tell handwritten digits apart, whose patches run some of the heads."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from sklearn.model_selection import train_test_split

from experiments.mixture_of_heads.config import Config, Mixture
from experiments.mixture_of_heads.model import with_balance, without_random_heads
from jattn.data.images import digits
from jattn.interpret import capture
from jattn.mechanisms import FullAttention, MixtureOfHeadsAttention
from jattn.models.vision_transformer import VisionTransformer, VisionTransformerConfig
from jattn.runs import Run
from jattn.train import Fitted, Generated, fit

PIXELS = 8
CLASSES = 10
FEW_PATCHES = "reference"
"""The implementation of attention: all pairs at once are the fastest while they are few."""


class Labelled(NamedTuple):
    """Grey values from 0 to 1, and which digit it is."""

    images: Float[Array, "count height width 1"]
    labels: Int[Array, " count"]


class Parts(NamedTuple):
    """Digits to train with, to validate with, and to test with; none is in two parts."""

    train: Labelled
    validation: Labelled
    test: Labelled


def split(config: Config) -> Parts:
    """The parts, each with as many of every class as of all, or one more or less; the same for all seeds.

    Raises:
      ValueError: as `jattn.data.images.digits`.
    """
    found = digits()
    cut: Any = partial(train_test_split, random_state=config.seed)
    rest, test = cut(np.arange(len(found.labels)), test_size=config.images.test, stratify=found.labels)
    train, validation = cut(rest, test_size=config.images.validation, stratify=found.labels[rest])

    def part(rows: np.ndarray) -> Labelled:
        grey = found.images[rows, :, :, None].astype(np.float32) / found.brightest
        return Labelled(jnp.asarray(grey), jnp.asarray(found.labels[rows], jnp.int32))

    return Parts(part(train), part(validation), part(test))


def build(config: Config, mixture: Mixture | None, rngs: nnx.Rngs) -> VisionTransformer:
    """With multi-head attention, or a mixture, in every layer."""

    def attention(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> nnx.Module:
        if mixture is None:
            return FullAttention(width, heads, implementation=FEW_PATCHES, rngs=rngs)
        return MixtureOfHeadsAttention(
            width,
            heads,
            shared=mixture.shared,
            top_k=mixture.top_k,
            base=None,
            causal=False,
            implementation=FEW_PATCHES,
            rngs=rngs,
        )

    of = config.images
    sizes = VisionTransformerConfig(
        PIXELS, of.patch, 1, of.width, of.layers, config.heads, of.hidden, CLASSES, attention
    )
    return VisionTransformer(sizes, rngs=rngs)


def sample(data: Labelled, batch: int, key: Key[Array, ""]) -> Labelled:
    """Images drawn with replacement."""
    rows = jax.random.randint(key, (batch,), 0, len(data.labels))
    return Labelled(data.images[rows], data.labels[rows])


def loss(
    balance_weight: float, model: VisionTransformer, batch: Labelled
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy in nats, and the balance loss where there is one."""
    logits = model(batch.images)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
    metrics = {"accuracy": (logits.argmax(axis=-1) == batch.labels).mean()}
    return with_balance(entropy, balance_weight, model, metrics)


def accuracy(model: VisionTransformer, data: Labelled) -> Float[Array, ""]:
    return (model(data.images).argmax(axis=-1) == data.labels).mean()


def accuracy_without_heads(
    keep: int, model: VisionTransformer, key: Key[Array, ""], data: Labelled
) -> Float[Array, ""]:
    """Of the multi-head model, when each patch keeps that many heads of every layer, drawn at random."""
    shape = (len(data.images), len(model.positions[...]), model.blocks[0].attention.heads)
    edits = without_random_heads(len(model.blocks), keep, shape, key)
    return capture(accuracy, model, data, edits=edits).output


def train(run: Run, config: Config, parts: Parts, name: str, mixture: Mixture | None) -> Fitted:
    """Train one arm on the same batches as the other."""
    of = config.images
    fitted = fit(
        run,
        name,
        build=partial(build, config, mixture),
        loss=partial(loss, config.balance_weight),
        optimiser=of.optimiser(config.weight_decay),
        data=Generated(partial(sample, parts.train, of.batch_size)),
        key=jax.random.key(config.seed + 2),
        schedule=of.schedule(),
        seeds=of.seeds,
        evaluate=lambda model: {"accuracy": accuracy(model, parts.validation)},
    )
    run.stop_if_asked()
    return fitted


def run_images(run: Run, config: Config) -> dict[str, Float[np.ndarray, " seeds"]]:
    """Accuracy on test images: of multi-head attention, whole and without a random half of its heads, and a mixture."""
    parts = split(config)
    whole = train(run, config, parts, "images_multi_head", None)
    half = train(run, config, parts, "images_mixture_50", config.mixtures["mixture_50"])
    keys = jax.random.split(jax.random.key(config.seed + 3), config.images.seeds)
    without = partial(accuracy_without_heads, config.heads // 2)
    found = {
        "multi_head": whole.map(accuracy, shared=(parts.test,)),
        "mixture_50": half.map(accuracy, shared=(parts.test,)),
        "without_a_half": whole.map(without, keys, shared=(parts.test,)),
    }
    return {name: np.asarray(each, np.float64) for name, each in found.items()}
