"""What the programs that run on several devices compare: arrays, single-device attention, and errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import masks

Function = Callable[..., tuple[jax.Array, jax.Array]]
TILES = kernels.Tiles(8, 8)


def draw(*, length: int = 128, key_length: int | None = None, dtype: Any = jnp.float32) -> list[jax.Array]:
    """Query, key and value of two sequences, with two query heads to a key head."""
    rng = np.random.default_rng(length)
    shapes = [(2, length, 4, 8), (2, key_length or length, 2, 8), (2, key_length or length, 2, 6)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def segment_ids(length: int) -> jax.Array:
    return jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 4, size=(2, length)), axis=1))


def single(causal: bool = False, segments: jax.Array | None = None, **options: Any) -> Function:
    """Output and log-sum-exp by the quadratic reference, of float32."""
    mask = masks.Causal("start") if causal else None
    if segments is not None:
        mask = masks.Segments(segments) if mask is None else mask & masks.Segments(segments)

    def function(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        wide = [array.astype(jnp.float32) for array in arrays]
        options_here = {"mask": mask, "statistics": ("lse",), "implementation": "reference", **options}
        output, found = kernels.attention(*wide, **options_here)
        return output, found.lse

    return function


def forward_and_gradient(function: Function) -> Callable[..., Any]:
    """Output and log-sum-exp, and the gradient of a number that depends on each of their entries in its own way."""

    def loss(*arrays: jax.Array) -> tuple[jax.Array, Any]:
        answers = function(*arrays)
        weights = [jnp.sin(jnp.arange(answer.size)).reshape(answer.shape) for answer in answers]
        return sum((weight * answer).sum() for weight, answer in zip(weights, answers, strict=True)), answers

    def both(*arrays: jax.Array) -> tuple[Any, Any]:
        (_, answers), slopes = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)
        return answers, slopes

    return both


def gradient(function: Function) -> Callable[..., Any]:
    return lambda *arrays: forward_and_gradient(function)(*arrays)[1]


def error(found: Any, truth: Any) -> float:
    """The largest, of each array by its own largest entry."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True)
    return max(relative(np.asarray(f, np.float32), np.asarray(t, np.float32)) for f, t in pairs)


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    assert found.shape == truth.shape
    return float(np.abs(found - truth).max() / np.abs(truth).max())
