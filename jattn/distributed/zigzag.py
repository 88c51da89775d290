"""The zigzag layout, in which every device has the same share of causal attention at every step of a trip.

A sequence is cut into 2n chunks for n devices, and device d holds chunks d and 2n-1-d, one early and one late. Of the
four pairs of chunks when the queries of device d meet the keys of device e, exactly two are read if d ≠ e: the late
queries read the early keys, and either the early queries read the early keys (d > e) or the late ones the late keys.
With d = e one pair is read whole and two by half. In the order of the sequence the last device would read all keys
that pass and the first only its own, and every step would take as long as a full one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from kernels.masks.algebra import Positions, pytree
from kernels.masks.positions import HalfPlanes


def zigzag(array: Shaped[Array, "..."], devices: int, axis: int) -> Shaped[Array, "..."]:
    """Brings an axis from the order of the sequence into the zigzag layout: device d's shard is the d-th part.

    >>> zigzag(jnp.arange(8), devices=2, axis=0)
    Array([0, 1, 6, 7, 2, 3, 4, 5], dtype=int32)

    Raises:
      ValueError: twice the number of devices does not divide the axis.
    """
    early, late = jnp.split(_cut(array, devices, axis, (2, devices)), 2, axis)
    return jnp.concatenate([early, jnp.flip(late, axis + 1)], axis).swapaxes(axis, axis + 1).reshape(array.shape)


def unzigzag(array: Shaped[Array, "..."], devices: int, axis: int) -> Shaped[Array, "..."]:
    """Brings an axis back from the zigzag layout into the order of the sequence.

    >>> unzigzag(jnp.array([0, 1, 6, 7, 2, 3, 4, 5]), devices=2, axis=0)
    Array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)

    Raises:
      ValueError: twice the number of devices does not divide the axis.
    """
    early, late = jnp.split(_cut(array, devices, axis, (devices, 2)).swapaxes(axis, axis + 1), 2, axis)
    return jnp.concatenate([early, jnp.flip(late, axis + 1)], axis).reshape(array.shape)


def _cut(array: Array, devices: int, axis: int, parts: tuple[int, int]) -> Array:
    if devices < 1:
        raise ValueError(f"devices must be at least 1; got {devices}")
    if not 0 <= axis < array.ndim:
        raise ValueError(f"axis must be at least 0 and below the array's {array.ndim}; got {axis}")
    chunk, rest = divmod(array.shape[axis], 2 * devices)
    if rest:
        raise ValueError(
            f"array's axis {axis} must be a multiple of 2 · {devices} devices to be cut in zigzag; got {array.shape}"
        )
    return array.reshape(*array.shape[:axis], *parts, chunk, *array.shape[axis + 1 :])


@pytree
class ZigzagCausal(HalfPlanes):
    """A query of one device's shard reads the keys of another's up to its own position, both in the zigzag layout.

    Positions in the sequence grow along a shard, so the corners of a tile tell its class.
    """

    query_device: Int[Array, "..."]
    key_device: Int[Array, "..."]
    devices: int
    chunk: int

    def margins(self, rows: Positions, columns: Positions) -> list[Positions]:
        return [self._position(rows, self.query_device) - self._position(columns, self.key_device)]

    def _position(self, index: Positions, device: Int[Array, "..."]) -> Positions:
        late = (2 * self.devices - 2 - device) * self.chunk
        return index + jnp.where(index < self.chunk, device * self.chunk, late)
