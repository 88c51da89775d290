"""Small real images with labels."""

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from sklearn.datasets import load_digits

from jattn.data import sources
from jattn.data.compressed import decompress
from jattn.data.source import read_files

DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
LARGEST_FILE = 64 << 20
"""Bytes that a file of images may unpack to."""


@dataclass(frozen=True)
class LabelledImages:
    """Grey images and their classes.

    Attributes:
      images: from 0, the background, to `brightest`.
      labels: indices into `classes`.
    """

    images: UInt8[np.ndarray, "count height width"]
    labels: UInt8[np.ndarray, " count"]
    classes: tuple[str, ...]
    brightest: int


class TrainAndTest(NamedTuple):
    """The parts of a data set that comes in parts."""

    train: LabelledImages
    test: LabelledImages


def digits() -> LabelledImages:
    """1,797 handwritten digits of 8 x 8 pixels, 0 to 16; the source knows no training and test part.

    Alpaydin and Kaynak's test set of optical recognition of handwritten digits (1998; UCI repository, CC BY 4.0), as
    scikit-learn ships it: by 13 writers, who are not told apart.

    Raises:
      ValueError: the installed numbers are not the ones this project was checked with.
    """
    bunch: Any = load_digits()
    images, labels = np.asarray(bunch.images).astype(np.uint8), np.asarray(bunch.target).astype(np.uint8)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if digest != DIGITS_SHA256:
        raise ValueError(f"digits must have SHA-256 {DIGITS_SHA256}; scikit-learn gave {digest}")
    return LabelledImages(images, labels, tuple("0123456789"), brightest=16)


def fashion_mnist() -> TrainAndTest:
    """60,000 and 10,000 pictures of clothes, 28 x 28 pixels, 0 to 255, ten classes alike in number.

    Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747); Debian's dataset-fashion-mnist, 31 MB, MIT.

    Raises:
      FileNotFoundError, ValueError: as `read_files`.
    """
    files = read_files(sources.FASHION_MNIST)
    classes = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

    def part(name: str) -> LabelledImages:
        images, labels = (
            parse_idx(decompress(files[file], LARGEST_FILE, file), rank, file)
            for rank, file in ((3, f"{name}-images-idx3-ubyte.gz"), (1, f"{name}-labels-idx1-ubyte.gz"))
        )
        return LabelledImages(images, labels, classes, brightest=255)

    return TrainAndTest(part("train"), part("t10k"))


def parse_idx(content: bytes, rank: int, name: str) -> UInt8[np.ndarray, "..."]:
    """The array of an IDX file of unsigned bytes.

    Two bytes 0, a byte 8 for the type, a byte for the rank, a big-endian uint32 for each axis, then the numbers, the
    last axis fastest (LeCun, Cortes and Burges, "The MNIST database").

    Raises:
      ValueError: it is none of that rank, an axis is empty, or there are fewer or more numbers than its axes say.
    """
    magic, begin = bytes([0, 0, 8, rank]), 4 + 4 * rank
    if not content.startswith(magic) or len(content) < begin:
        found = content[:begin].hex() or "nothing"
        raise ValueError(f"{name} must begin with {magic.hex()} and {rank} sizes; got {found}")
    shape = struct.unpack_from(f">{rank}I", content, 4)
    if 0 in shape or math.prod(shape) != len(content) - begin:
        claimed = " x ".join(map(str, shape))
        raise ValueError(f"{name} must have {claimed} bytes, as it says; got {len(content) - begin}")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
