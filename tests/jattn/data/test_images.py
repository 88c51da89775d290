"""Images: the IDX format, and the real sets."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from jattn.data import images
from jattn.data.source import find_folder
from jattn.data.sources import FASHION_MNIST


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=3)


@given(shape=SHAPES, seed=st.integers(0, 9))
def test_arrays_come_back(shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(images.parse_idx(idx(array), len(shape), "it"), array)


@given(shape=SHAPES, data=st.data())
def test_files_cut_short_or_with_more_are_refused(shape: list[int], data: st.DataObject) -> None:
    whole = idx(np.ones(shape, np.uint8))
    kept = whole[: data.draw(st.integers(0, len(whole) - 1))]
    wrong = data.draw(st.sampled_from([kept, whole + b"\1"]))
    with pytest.raises(ValueError, match="it must"):
        images.parse_idx(wrong, len(shape), "it")


@given(sizes=st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3), content=st.binary(max_size=64))
def test_sizes_that_are_not_those_of_the_content(sizes: list[int], content: bytes) -> None:
    """Nothing is made of the size that a header claims."""
    if 0 < sizes[0] * sizes[1] * sizes[2] == len(content):
        return
    claimed = " x ".join(map(str, sizes))
    with pytest.raises(ValueError, match=f"it must have {claimed} bytes, as it says; got {len(content)}"):
        images.parse_idx(bytes([0, 0, 8, 3]) + struct.pack(">3I", *sizes) + content, 3, "it")


@pytest.mark.parametrize("magic", ["00000801", "00000d03", "01000803", "00000804"])
def test_other_types_and_ranks_are_refused(magic: str) -> None:
    with pytest.raises(ValueError, match=f"it must begin with 00000803 and 3 sizes; got {magic}"):
        images.parse_idx(bytes.fromhex(magic) + bytes(20), 3, "it")


def test_digits_are_scikit_learns() -> None:
    digits, theirs = images.digits(), load_digits()
    assert digits.images.shape == (1797, 8, 8)
    assert digits.brightest == digits.images.max() == 16
    np.testing.assert_array_equal(digits.images, theirs.images)
    np.testing.assert_array_equal(digits.labels, theirs.target)
    assert [digits.classes[label] for label in digits.labels[:10]] == list("0123456789")
    # Digits of each class as UCI's description of the test set counts them.
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("part", ["images", "target"])
def test_altered_digits_are_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = load_digits()
    altered[part].flat[-1] += 1
    monkeypatch.setattr(images, "load_digits", lambda: altered)
    with pytest.raises(ValueError, match=f"digits must have SHA-256 {images.DIGITS_SHA256}; scikit-learn gave"):
        images.digits()


def test_fashion_mnist() -> None:
    if find_folder(FASHION_MNIST) is None:
        pytest.skip(f"fashion_mnist is not on this machine: {FASHION_MNIST.command}")
    train, test = images.fashion_mnist()
    for part, count in ((train, 60_000), (test, 10_000)):
        assert part.images.shape == (count, 28, 28)
        assert np.bincount(part.labels).tolist() == [count // 10] * 10
        assert (part.images.min(), part.images.max(), part.brightest) == (0, 255, 255)
    assert len(train.classes) == 10
    # The mean over the training images that is customarily subtracted is 0.2860 of the brightest.
    assert round(train.images.mean() / 255, 4) == 0.2860
    assert train.classes[train.labels[0]] == "ankle boot"
