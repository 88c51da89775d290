"""Attention by the definition, one row at a time in numpy, and the inputs that the kernels are tried on."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def softmax_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray | None = None, scale: float | None = None
) -> np.ndarray:
    """In the dtype of the arguments: exact enough to be the truth in float64, a yardstick in float32."""
    batch, query_length, heads, width = query.shape
    key_length, kv_heads, value_width = key.shape[1], key.shape[2], value.shape[3]
    scale = query.dtype.type(1 / np.sqrt(width) if scale is None else scale)
    mask = np.broadcast_to(True if mask is None else mask, (batch, heads, query_length, key_length))
    output = np.zeros((batch, query_length, heads, value_width), query.dtype)
    for b, q, h in np.ndindex(batch, query_length, heads):
        read, group = mask[b, h, q], h // (heads // kv_heads)
        if read.any():
            scores = key[b, read, group] @ query[b, q, h] * scale
            weights = np.exp(scores - scores.max())
            output[b, q, h] = weights / weights.sum() @ value[b, read, group]
    return output


def linear_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Softmax attention's sum with the scores themselves as the weights."""
    batch, query_length, heads, width = query.shape
    kv_heads = key.shape[2]
    scale = query.dtype.type(1 / np.sqrt(width) if scale is None else scale)
    output = np.zeros((batch, query_length, heads, value.shape[3]), query.dtype)
    for b, q, h in np.ndindex(batch, query_length, heads):
        group = h // (heads // kv_heads)
        output[b, q, h] = (key[b, :, group] @ query[b, q, h] * scale) @ value[b, :, group]
    return output


def normal(
    seed: int, *, batch=2, query_length=3, key_length=4, heads=4, kv_heads=2, width=3, value_width=5, dtype=np.float64
) -> Arrays:
    """Query, key and value of independent normal numbers."""
    rng = np.random.default_rng(seed)
    shapes = (
        (batch, query_length, heads, width),
        (batch, key_length, kv_heads, width),
        (batch, key_length, kv_heads, value_width),
    )
    query, key, value = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    return query, key, value


@dataclass(frozen=True)
class Case:
    """Inputs in the dtype that the kernel gets, so that the truth is computed from the same numbers."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    mask: np.ndarray | None
    scale: float | None

    def arrays(self, dtype: type) -> Arrays:
        return self.query.astype(dtype), self.key.astype(dtype), self.value.astype(dtype)


@st.composite
def cases(draw: st.DrawFn, *, masked: bool) -> Case:
    """Any shapes that fit, grouped queries, a mask with any of its axes broadcast, any dtype and scale."""
    kv_heads = draw(st.integers(1, 3))
    sizes = {
        "batch": draw(st.integers(1, 3)),
        "query_length": draw(st.integers(1, 6)),
        "key_length": draw(st.integers(0, 7)),
        "heads": kv_heads * draw(st.integers(1, 3)),
    }
    seed, dtype = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]))
    width, value_width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    arrays = normal(seed, **sizes, kv_heads=kv_heads, width=width, value_width=value_width, dtype=dtype)
    mask = None
    if masked and draw(st.booleans()):
        shape = [size if draw(st.booleans()) else 1 for size in (sizes[name] for name in
                 ("batch", "heads", "query_length", "key_length"))]  # fmt: skip
        mask = np.random.default_rng(seed).random(shape) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    scale = draw(st.none() | st.sampled_from([-2.0, 0.1, 1.0, 5.0]))
    return Case(*arrays, mask, scale)


def worst(have: object, want: np.ndarray) -> float:
    """The largest absolute error, not-a-number counted as infinite."""
    error = np.abs(np.asarray(have, np.float64) - want)
    return float(np.max(np.where(np.isnan(error), np.inf, error), initial=0.0))


def slope(function, arguments: Arrays, direction: Arrays, step: float = 1e-5) -> np.ndarray:
    """The derivative along a direction, by central differences."""
    ahead, behind = (
        function(*(a + sign * step * d for a, d in zip(arguments, direction, strict=True))) for sign in (1, -1)
    )
    return (ahead - behind) / (2 * step)


def curvature(function, arguments: Arrays, first: Arrays, second: Arrays, step: float = 1e-3) -> np.ndarray:
    """The second derivative along two directions, by central differences of central differences."""
    return slope(lambda *at: slope(function, at, second, step), arguments, first, step)
