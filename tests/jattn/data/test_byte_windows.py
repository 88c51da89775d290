"""Splits of documents, and windows over their bytes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jattn.data.byte_windows import join_documents, sample_windows, split_documents, window_grid
from jattn.data.corpus import Document

DOCUMENTS = tuple(Document(f"document {n}", f"text {n}".encode()) for n in range(2000))


def test_every_document_is_in_one_part_in_its_order() -> None:
    split = split_documents(DOCUMENTS, validation=0.1, test=0.2)
    joined = sorted((d for part in split for d in part), key=lambda d: int(d.name.split()[1]))
    assert joined == list(DOCUMENTS)
    for part, share in zip(split, (0.7, 0.1, 0.2), strict=True):
        assert list(part) == sorted(part, key=DOCUMENTS.index)
        assert abs(len(part) - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5


def test_documents_stay_in_their_part() -> None:
    """Whatever other documents there are, in whatever order, and in every process."""
    split = split_documents(DOCUMENTS, validation=0.1, test=0.2)
    fewer = split_documents(DOCUMENTS[::-3], validation=0.1, test=0.2)
    for part, smaller in zip(split, fewer, strict=True):
        assert set(smaller) <= set(part)
    # More to choose by takes nothing from what is reported on.
    assert split_documents(DOCUMENTS, validation=0.3, test=0.2).test == split.test
    # printf 'document 0' | sha256sum begins with 19e6, that is 0.10; so on to document 11, read off the same way.
    expected = {"test": (0, 5, 8, 9), "validation": (3, 7), "train": (1, 2, 4, 6, 10, 11)}
    for part, numbers in expected.items():
        assert getattr(split, part)[: len(numbers)] == tuple(DOCUMENTS[n] for n in numbers)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.5), "validation and test must be shares that sum to less than 1; got 0.5 and 0.5"),
        ((-0.1, 0.5), "must be shares"),
        ((float("nan"), 0.5), "must be shares"),
        ((1e-9, 0.1), "validation must get a document; its share of 1e-09 of 2000 got none"),
        ((0.1, 1e-9), "test must get a document"),
    ],
)
def test_shares_that_cannot_be(shares: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_documents(DOCUMENTS, validation=shares[0], test=shares[1])


def test_a_share_of_none_is_none_and_names_are_not_shared() -> None:
    split = split_documents(DOCUMENTS, validation=0.0, test=0.0)
    assert split == (DOCUMENTS, (), ())
    with pytest.raises(ValueError, match="documents must have names of their own"):
        split_documents([*DOCUMENTS, Document("document 7", b"another")], validation=0.1, test=0.1)
    with pytest.raises(ValueError, match="train must get a document"):
        split_documents([], validation=0.1, test=0.1)


@given(contents=st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\0", b"x")), min_size=1, max_size=6))
def test_joined_documents_can_be_told_apart(contents: list[bytes]) -> None:
    text = join_documents([Document(str(n), content) for n, content in enumerate(contents)])
    assert text.dtype == np.uint8
    assert text.tobytes().split(b"\0") == contents


def test_what_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="documents must be at least one"):
        join_documents([])
    with pytest.raises(ValueError, match="must not have a byte 0, which separates them; got one in 'b'"):
        join_documents([Document("a", b"x"), Document("b", b"x\0y")])


TEXT = np.arange(37, dtype=np.uint8) * 5 + 3
"""Every byte differs, so that a window tells where it is from."""


def test_windows_are_pieces_of_the_text_from_everywhere_alike() -> None:
    length, batch = 6, 31_000
    windows = np.asarray(jax.jit(partial(sample_windows, jnp.asarray(TEXT), length, batch))(jax.random.key(0)))
    assert windows.shape == (batch, length + 1)
    assert windows.dtype == np.int32
    starts = (windows[:, 0] - 3) // 5
    np.testing.assert_array_equal(windows, TEXT[starts[:, None] + np.arange(length + 1)])
    counts = np.bincount(starts, minlength=31)
    assert counts.size == 37 - length == 31  # the last window ends with the text
    # Chi-squared of 30 degrees of freedom: mean 30, standard deviation √60.
    assert ((counts - batch / 31) ** 2 / (batch / 31)).sum() < 30 + 5 * 60**0.5


def test_fresh_for_every_key_under_vmap_and_the_same_for_the_same() -> None:
    draw = jax.jit(jax.vmap(partial(sample_windows, jnp.asarray(TEXT), 4, 8)))
    first, again, other = np.asarray(draw(jax.random.wrap_key_data(jnp.uint32([[0, 1], [0, 1], [0, 2]]))))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_text_of_one_window() -> None:
    windows = sample_windows(jnp.asarray(TEXT[:5]), 4, 3, jax.random.key(1))
    np.testing.assert_array_equal(windows, np.tile(TEXT[:5], (3, 1)))


@given(size=st.integers(2, 40), data=st.data())
def test_the_grid_predicts_every_byte_but_the_first_once(size: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, size - 1))
    text = np.resize(TEXT, size)
    windows, counts = window_grid(text, length)
    assert windows.shape[1] == length + 1
    np.testing.assert_array_equal(windows[:, 1:][counts], text[1:])
    np.testing.assert_array_equal(windows[:, :-1][counts], text[:-1])
    assert not windows[:, 1:][~counts].any()
    assert counts[:-1].all()
    assert counts[-1].any()


@pytest.mark.parametrize(
    ("length", "batch", "message"),
    [
        (0, 1, "length must be at least 1; got 0"),
        (37, 1, "text must have more than length = 37 bytes; got 37"),
        (4, 0, "batch must be at least 1; got 0"),
    ],
)
def test_windows_that_cannot_be(length: int, batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_windows(jnp.asarray(TEXT), length, batch, jax.random.key(0))
    if batch:
        with pytest.raises(ValueError, match=message):
            window_grid(TEXT, length)
