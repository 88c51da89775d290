"""What is measured on trained models: bits per byte, where heads look, and what the clusters are worth."""

from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.routing_transformer.config import Config
from experiments.routing_transformer.model import ClusteredAttention, random_lists
from experiments.routing_transformer.model import bits as bits_of_model
from jattn.layers.norms import layer_norm
from jattn.layers.positions import rotate_by_position
from jattn.mechanisms import LocalAttention
from jattn.models.decoder import Decoder
from jattn.train import Fitted
from jattn.train.language import over_windows

BEST_KEYS = 16
OTHER_SEED = 1000
"""Apart from those of the layers' own random clusters."""

PerSeed = Float[np.ndarray, " seeds"]


def bits(fitted: Fitted, windows: Int[Array, "windows length"], *, random: bool = False) -> PerSeed:
    """Bits per byte of every seed.

    Args:
      random: with clusters made random after training.
    """

    def of(model: Decoder, windows: Int[Array, "windows length"]) -> Float[Array, ""]:
        if random:
            model.set_attributes(random=True)
        return bits_of_model(model, windows)

    return np.asarray(fitted.map(of, shared=(windows,)), np.float64)


@dataclass(frozen=True)
class Look:
    """Where heads look, in each of the last layers: Jensen-Shannon divergences in nats, means over pairs and tokens.

    Attributes:
      among: between two of the first `local_heads` heads.
      across: between one of these and one of the others.
      distance: weight on keys so many tokens back, a mean over heads: the first `local_heads`, and the others.
    """

    among: Float[np.ndarray, "seeds layers"]
    across: Float[np.ndarray, "seeds layers"]
    distance: Float[np.ndarray, "seeds layers 2 length"]


def look(fitted: Fitted, config: Config, windows: Int[Array, "windows length"]) -> Look:
    """Of the layers that have clustered heads in some arms, in whichever arm this is."""
    found = fitted.map(partial(_look, config), shared=(windows,))
    return Look(*(np.asarray(found[name], np.float64) for name in ("among", "across", "distance")))


def _look(config: Config, model: Decoder, windows: Int[Array, "windows length"]) -> dict[str, Array]:
    def one(model: Decoder, window: Int[Array, "1 length"]) -> dict[str, Array]:
        layers = _last_layers(config, model, window[:, :-1])
        return _stacked([_look_of(config, weights(attention, normed)[0]) for attention, normed in layers])

    return jax.tree.map(lambda each: each.mean(axis=0), over_windows(one, model, windows))


def _look_of(config: Config, shares: Float[Array, "length heads keys"]) -> dict[str, Array]:
    first, others = range(config.local_heads), range(config.local_heads, config.heads)
    length = shares.shape[0]
    back = (jnp.arange(length)[:, None] - jnp.arange(length)) % length
    mean = jnp.stack([shares[:, : config.local_heads].mean(axis=1), shares[:, config.local_heads :].mean(axis=1)])
    return {
        "among": divergence(shares, list(combinations(first, 2))),
        "across": divergence(shares, list(product(first, others))),
        "distance": jnp.zeros((2, length)).at[:, back].add(mean) / length,
    }


def weights(
    attention: LocalAttention | ClusteredAttention, normed: Float[Array, "batch length width"]
) -> Float[Array, "batch length heads length"]:
    """How much each token reads of each: what a head reads when value j is the unit vector j.

    A token in several clusters reads a mean; one in none reads nothing, and its weights are 0.
    """
    batch, length, _ = normed.shape
    positions = jnp.arange(length)
    eye = jnp.broadcast_to(jnp.eye(length)[None, :, None], (batch, length, attention.heads, length))
    if isinstance(attention, ClusteredAttention):
        query, key, _ = attention.project(normed)
        return attention.attend(query, key, eye, positions)
    query, key, _ = attention.project(normed, positions)
    return attention.attend(query, key, eye)


def divergence(shares: Float[Array, "tokens heads keys"], pairs: list[tuple[int, int]]) -> Float[Array, ""]:
    """Jensen-Shannon divergence of two heads' weights, in nats, at most log 2; the mean over tokens and pairs.

    Tokens for which one of the two reads nothing do not count.
    """

    def entropy(p: Float[Array, "tokens keys"]) -> Float[Array, " tokens"]:
        return -(p * jnp.log(jnp.where(p > 0, p, 1))).sum(axis=-1)

    def one(pair: Int[Array, " 2"]) -> tuple[Array, Array]:
        p, q = shares[:, pair[0]], shares[:, pair[1]]
        both = (p.sum(axis=-1) > 0) & (q.sum(axis=-1) > 0)
        apart = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
        return jnp.where(both, apart, 0).sum(), both.sum()

    total, count = jax.lax.map(one, jnp.array(pairs))
    return total.sum() / jnp.maximum(count.sum(), 1)


@dataclass(frozen=True)
class Clusters:
    """What the clusters are like, means over layers and routing heads.

    Attributes:
      nearest: mean squared distance of vectors to the nearest centroid.
      nearest_random: to the nearest of as many random points of the sphere, where centroids begin.
      empty: share of centroids that no vector is nearest to.
      recall: share of the keys with the most weight, of full attention over the same queries and keys, that a token
        finds in its clusters.
      recall_random: that in random clusters.
      recall_other: that in other random clusters.
    """

    nearest: PerSeed
    nearest_random: PerSeed
    empty: PerSeed
    recall: PerSeed
    recall_random: PerSeed
    recall_other: PerSeed


def clusters(fitted: Fitted, config: Config, windows: Int[Array, "windows length"]) -> Clusters:
    """Of the arm "routing"."""
    found = fitted.map(partial(_clusters, config), shared=(windows,))
    return Clusters(**{name: np.asarray(value, np.float64) for name, value in found.items()})


def _clusters(config: Config, model: Decoder, windows: Int[Array, "windows length"]) -> dict[str, Array]:
    def one(model: Decoder, window: Int[Array, "1 length"]) -> dict[str, Array]:
        return _stacked([_clusters_of(*layer) for layer in _last_layers(config, model, window[:, :-1])])

    found = over_windows(one, model, windows)
    used = found.pop("used").any(axis=0)
    return jax.tree.map(jnp.mean, found) | {"empty": 1 - used.mean()}


def _clusters_of(attention: ClusteredAttention, normed: Float[Array, "1 length width"]) -> dict[str, Array]:
    query, key, _ = attention.project(normed)
    routed, length = query[:, :, attention.local_heads :], normed.shape[1]
    vectors, places = jnp.moveaxis(routed[0], 1, 0), attention.centroids.places
    nearest = attention.centroids.nearest(vectors)
    anywhere = layer_norm(jax.random.normal(jax.random.key(OTHER_SEED), places.shape))

    def distance(places: Float[Array, "heads clusters width"]) -> Float[Array, ""]:
        """To the nearest of them."""
        return ((vectors[:, :, None] - places[:, None]) ** 2).sum(axis=-1).min(axis=-1).mean()

    turned = (rotate_by_position(each, jnp.arange(length))[0, :, attention.local_heads :] for each in (query, key))
    scores = jnp.einsum("nhd,mhd->hnm", *turned)
    earlier = jnp.tril(jnp.ones((length, length), bool), -1)
    _, best = jax.lax.top_k(jnp.where(earlier, scores, -jnp.inf), BEST_KEYS)
    heads, count, window = attention.lists(routed)[0].shape
    drawn = [random_lists(OTHER_SEED + number, heads, count, window, length) for number in range(2)]
    recalls = [recall(best, together(lists, length)) for lists in (attention.lists(routed)[0], *drawn)]
    return {
        "nearest": distance(places),
        "nearest_random": distance(anywhere),
        "used": jax.nn.one_hot(nearest, count, dtype=bool).any(axis=1),
        **dict(zip(("recall", "recall_random", "recall_other"), recalls, strict=True)),
    }


def together(
    lists: Int[Array, "heads clusters window"] | Int[np.ndarray, "heads clusters window"], length: int
) -> Bool[Array, "heads length length"]:
    """Which tokens are in a cluster with which."""
    member = jax.nn.one_hot(lists, length, dtype=jnp.float32).sum(axis=2)
    return jnp.einsum("hcn,hcm->hnm", member, member) > 0


def recall(best: Int[Array, "heads length keys"], found: Bool[Array, "heads length length"]) -> Float[Array, ""]:
    """Share of each token's best keys that are found, over the tokens that have as many earlier ones."""
    enough = best.shape[-1]
    return jnp.take_along_axis(found, best, axis=-1)[:, enough:].astype(jnp.float32).mean()


def _last_layers(
    config: Config, model: Decoder, tokens: Int[Array, "batch length"]
) -> list[tuple[Any, Float[Array, "batch length width"]]]:
    """Attention and what it is given, of the layers that have clustered heads in some arms."""
    features, layers = model.embedding(tokens), []
    for block in model.blocks:
        layers.append((block.attention, block.attention_norm(features)))
        features = block(features, None)
    return layers[-config.routing_layers :]


def _stacked(found: list[dict[str, Array]]) -> dict[str, Array]:
    return jax.tree.map(lambda *each: jnp.stack(each), *found)
