"""What every kernel demands of its arguments' shapes and dtypes, said once."""

import jax.numpy as jnp
from jaxtyping import Array


def check_attention_arguments(query: Array, key: Array, value: Array) -> None:
    """Raise unless query, key and value fit together in the layout of `jax.nn.dot_product_attention`.

    Raises:
      ValueError: an argument is not of rank 4, the width is 0, or batch, key length, width or head counts do not fit.
      TypeError: an argument is not floating point, or the three differ in dtype.
    """
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim != 4:
            raise ValueError(f"{name} must have shape (batch, length, heads, width); got {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point; got {array.dtype}")
        if array.dtype != query.dtype:
            raise TypeError(f"{name} must have the query's dtype {query.dtype}; got {array.dtype}")
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key and value must agree but for their width; got {key.shape} and {value.shape}")
    if query.shape[3] == 0:
        raise ValueError(f"query must have a width of at least 1; got {query.shape}")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key must agree in batch and width; got {query.shape} and {key.shape}")
    if key.shape[2] == 0 or query.shape[2] % key.shape[2]:
        raise ValueError(
            f"query heads must be a multiple of key heads (grouped queries); got {query.shape[2]} and {key.shape[2]}"
        )


def check_mask(mask: Array, shape: tuple[int, int, int, int]) -> None:
    """Raise unless the mask is boolean and broadcasts to `shape`, (batch, heads, query_length, key_length).

    Raises:
      ValueError: its rank is not 4, or an axis is neither 1 nor that of `shape`.
      TypeError: it is not boolean; a bias to be added to the scores is no mask.
    """
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean; got {mask.dtype}")
    if mask.ndim != 4 or any(have not in (1, want) for have, want in zip(mask.shape, shape, strict=True)):
        raise ValueError(f"mask must broadcast to (batch, heads, query_length, key_length) = {shape}; got {mask.shape}")
