"""The zigzag layout: there and back, whose mask is causal, and whose work is equal on all devices at all steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.distributed import unzigzag, zigzag
from jattn.distributed.zigzag import ZigzagCausal
from kernels.masks import Causal
from kernels.masks.algebra import Mask, Tiling, dense
from kernels.schedule import Schedule


def mask(query_device: int, key_device: int, devices: int, chunk: int) -> ZigzagCausal:
    on_grid = [jnp.full((1,) * 5, device) for device in (query_device, key_device)]
    return ZigzagCausal(*on_grid, devices, chunk)


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_there_and_back(devices: int, axis: int) -> None:
    array = jnp.arange(48 * 48).reshape(48, 48)
    there = zigzag(array, devices, axis)
    chunks = np.split(np.asarray(array), 2 * devices, axis)
    expected = [chunks[place] for device in range(devices) for place in (device, 2 * devices - 1 - device)]
    np.testing.assert_array_equal(there, np.concatenate(expected, axis))
    np.testing.assert_array_equal(unzigzag(there, devices, axis), array)


@pytest.mark.parametrize("devices", [1, 2, 5])
def test_mask_is_causal_in_the_order_of_the_sequence(devices: int) -> None:
    chunk = 3
    positions = np.asarray(zigzag(jnp.arange(2 * devices * chunk), devices, 0)).reshape(devices, -1)
    for query_device in range(devices):
        for key_device in range(devices):
            found = dense(mask(query_device, key_device, devices, chunk), 2 * chunk, 2 * chunk)
            truth = positions[query_device][:, None] >= positions[key_device][None]
            np.testing.assert_array_equal(found[0, 0, 0], truth)


def live_tiles(masks: list[Mask], length: int, tile: int) -> np.ndarray:
    tiling = Tiling(length, length, tile, tile)
    schedules = (Schedule.of(mask, tiling, (1, 1, 1)) for mask in masks)
    return np.array([int(jnp.sum(jnp.asarray(schedule.live))) for schedule in schedules])


@pytest.mark.parametrize(("chunk", "tile"), [(64, 8), (36, 8)], ids=["whole tiles", "a tile across chunks"])
def test_every_device_has_the_same_work_at_every_step(chunk: int, tile: int) -> None:
    devices, length = 4, 2 * chunk
    row = -(-length // tile)
    straight = []
    for step in range(devices):
        pairs = [(device, (device - step) % devices) for device in range(devices)]
        live = live_tiles([mask(*pair, devices, chunk) for pair in pairs], length, tile)
        assert np.ptp(live) <= row
        # Of all pairs of a step half are read, but for the diagonal and tiles that reach over the edge of a chunk.
        assert live.max() <= row**2 / 2 + 2 * row
        in_order = [Causal(jnp.full((1,) * 5, (device - other) * length)) for device, other in pairs]
        straight.append(live_tiles(in_order, length, tile))
    # The control: in the order of the sequence someone has everything to do at every step but the first, and someone
    # else nothing.
    assert all(np.ptp(live) == row**2 for live in straight[1:])


@pytest.mark.parametrize(
    ("devices", "axis", "complaint"),
    [
        (0, 0, "devices must be at least 1; got 0"),
        (2, 1, "axis must be at least 0 and below the array's 1; got 1"),
        (3, 0, r"array's axis 0 must be a multiple of 2 · 3 devices to be cut in zigzag; got \(8,\)"),
    ],
)
def test_bad_layout_is_named(devices: int, axis: int, complaint: str) -> None:
    for layout in (zigzag, unzigzag):
        with pytest.raises(ValueError, match=complaint):
            layout(jnp.arange(8), devices, axis)
