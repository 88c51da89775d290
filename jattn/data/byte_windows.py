"""Windows of bytes over documents: what a byte-level language model is trained and measured on.

    split = split_documents(corpus.documents, validation=0.1, test=0.1)
    text = jnp.asarray(join_documents(split.train))
    data = Generated(partial(sample_windows, text, length, batch))

Tokens are bytes, 0 to 255, and byte 0 separates documents. The text, closed over, is a constant of the compiled
program: no step copies it, and as it is only sliced at random places nothing of it is folded. Each program compiled
with it holds it once and takes about 0.05 s a megabyte longer to compile (10 and 100 MB on a CPU).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Key, UInt8

from jattn.data.corpus import Document


class Split(NamedTuple):
    """Documents to train on, to choose by, and to report on; no document is in two of them."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]


def split_documents(documents: Sequence[Document], *, validation: float, test: float) -> Split:
    """Split by a hash of each document's name: it stays where it is whatever other documents there are.

    Args:
      validation, test: expected shares of the documents; what part of the bytes they are depends on the documents.

    Raises:
      ValueError: shares that leave nothing to train on, two documents of one name, or a part without a document.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(f"validation and test must be shares that sum to less than 1; got {validation} and {test}")
    if len({document.name for document in documents}) < len(documents):
        raise ValueError("documents must have names of their own; got two of one name")
    parts: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        place = int.from_bytes(hashlib.sha256(document.name.encode()).digest()[:8]) / 2**64
        parts["test" if place < test else "validation" if place < test + validation else "train"].append(document)
    for name, share in (("train", 1 - validation - test), ("validation", validation), ("test", test)):
        if share > 0 and not parts[name]:
            raise ValueError(f"{name} must get a document; its share of {share:g} of {len(documents)} got none")
    return Split(*(tuple(part) for part in parts.values()))


def join_documents(documents: Sequence[Document]) -> UInt8[np.ndarray, " bytes"]:
    """The documents' bytes one after another, a byte 0 between two.

    Raises:
      ValueError: no documents, or one that has a byte 0 in it.
    """
    if not documents:
        raise ValueError("documents must be at least one; got none")
    for name, content in documents:
        if b"\0" in content:
            raise ValueError(f"documents must not have a byte 0, which separates them; got one in {name!r}")
    return np.frombuffer(b"\0".join(content for _, content in documents), np.uint8)


def sample_windows(
    text: UInt8[Array, " bytes"], length: int, batch: int, key: Key[Array, ""]
) -> Int32[Array, "{batch} {length}+1"]:
    """Windows of length + 1 bytes, each from anywhere in the text with equal probability; they may cross documents.

    All but the last byte of a window are input, all but the first are what is to be predicted.

    Raises:
      ValueError: length or batch below 1, or a text shorter than a window.
    """
    _check(text.shape[0], length)
    if batch < 1:
        raise ValueError(f"batch must be at least 1; got {batch}")
    starts = jax.random.randint(key, (batch,), 0, text.shape[0] - length)
    windows = jax.vmap(lambda start: jax.lax.dynamic_slice(text, (start,), (length + 1,)))(starts)
    return windows.astype(jnp.int32)


def window_grid(
    text: UInt8[np.ndarray, " bytes"], length: int
) -> tuple[Int32[np.ndarray, "windows {length}+1"], Bool[np.ndarray, "windows {length}"]]:
    """Windows over a whole text in which every byte but the first is predicted exactly once.

    Window i begins at byte i · length, so that each begins with the last byte of the one before; the last is filled
    up with zeros.

    Returns:
      The windows, and true for each prediction that counts: false where the last window is filled up.

    Raises:
      ValueError: length below 1, or a text shorter than a window.
    """
    _check(text.shape[0], length)
    predicted = text.shape[0] - 1
    windows = -(-predicted // length)
    padded = np.zeros(windows * length + 1, np.int32)
    padded[: text.shape[0]] = text
    grid = np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::length].copy()
    return grid, (np.arange(windows * length) < predicted).reshape(windows, length)


def _check(size: int, length: int) -> None:
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
    if size <= length:
        raise ValueError(f"text must have more than length = {length} bytes; got {size}")


def spread_windows(text: UInt8[np.ndarray, " bytes"], length: int, count: int) -> Int32[Array, "{count} {length}+1"]:
    """So many of the whole windows of `window_grid`, spread evenly over the text.

    Raises:
      ValueError: length or count below 1, or fewer whole windows than that.
    """
    windows, counts = window_grid(text, length)
    windows = windows[counts.all(axis=1)]
    if not 1 <= count <= len(windows):
        raise ValueError(f"count must be from 1 to the {len(windows)} windows of {length} bytes; got {count}")
    return jnp.asarray(windows[np.linspace(0, len(windows) - 1, count).astype(int)])


class ByteText(NamedTuple):
    """What a language model of bytes is trained and measured on.

    Attributes:
      train: the text to draw windows from.
      validation, test: windows of other documents, each of length + 1 bytes.
    """

    train: UInt8[Array, " bytes"]
    validation: Int32[Array, "windows length"]
    test: Int32[Array, "windows length"]


def byte_text(
    documents: Sequence[Document], length: int, *, validation_windows: int, test_windows: int, share: float = 0.05
) -> ByteText:
    """Documents split, and windows of those held out.

    Args:
      share: of the documents to validate on, and as many to test on.

    Raises:
      ValueError: the documents do not have as many windows.
    """
    split = split_documents(documents, validation=share, test=share)
    return ByteText(
        jnp.asarray(join_documents(split.train)),
        spread_windows(join_documents(split.validation), length, validation_windows),
        spread_windows(join_documents(split.test), length, test_windows),
    )
