"""What is measured on trained models: which tokens use which heads, and how evenly."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from jattn.models.decoder import Decoder
from jattn.train.language import over_windows

CLASSES = ("space", "lower case", "upper case", "digit", "bracket or quote", "other")


def byte_classes(tokens: Integer[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """The class of every byte, an index into `CLASSES`."""
    table = np.full(256, len(CLASSES) - 1)
    for index, members in enumerate((b" \n\r\t\0", range(97, 123), range(65, 91), range(48, 58), b"()[]{}'\"`")):
        table[list(members)] = index
    return table[tokens]


def choices(model: Decoder, windows: Int[Array, "windows window"]) -> Bool[Array, "windows layers length routed"]:
    """Which routed heads each input byte keeps in every layer of a mixture."""

    def of_window(model: Decoder, window: Int[Array, "1 window"]) -> Array:
        features, chosen = model.embedding(window[:, :-1]), []
        for block in model.blocks:
            normed = block.attention_norm(features)
            query, _, _ = block.attention.attention.project(normed)
            chosen.append(block.attention.route(normed, query).chosen[0])
            features = block(features, None)
        return jnp.stack(chosen)

    return over_windows(of_window, model, windows)


def use_of_heads(
    chosen: Bool[np.ndarray, "seeds windows layers length routed"], classes: Int[np.ndarray, "windows length"]
) -> Float[np.ndarray, "seeds layers routed classes"]:
    """How many tokens of each class keep each routed head."""
    kinds = np.eye(len(CLASSES))[classes]
    return np.einsum("swlth,wtc->slhc", chosen.astype(np.float64), kinds, optimize=True)


def unevenness(use: Float[np.ndarray, "seeds layers routed classes"]) -> Float[np.ndarray, " seeds"]:
    """The largest |log₂| of a head's use over even use; infinite where a head is not used at all."""
    of_head = use.sum(axis=-1)
    with np.errstate(divide="ignore"):
        return np.abs(np.log2(of_head / of_head.mean(axis=-1, keepdims=True))).max(axis=(1, 2))


def independence(use: Float[np.ndarray, "seeds layers routed classes"]) -> Float[np.ndarray, " seeds"]:
    """The p-value of a chi-square test that heads are used alike by all classes, of the layer where it is largest."""
    return np.array([max(_p_value(table) for table in layers) for layers in use])


def clearness(use: Float[np.ndarray, "seeds layers routed classes"]) -> Float[np.ndarray, "seeds layers"]:
    """Cramér's V between head and class, from 0 to 1: how much of it there is, whatever the number of tokens."""
    return np.array([[float(association(_occurring(table).astype(int))) for table in layers] for layers in use])


def _p_value(table: Float[np.ndarray, "routed classes"]) -> float:
    found: Any = chi2_contingency(_occurring(table))
    return float(found.pvalue)


def _occurring(table: Float[np.ndarray, "routed classes"]) -> Float[np.ndarray, "some_routed some_classes"]:
    return table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
