"""Bounded decompression of files that may be anything."""

import bz2
import gzip
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jattn.data.compressed import decompress

COMPRESS = {"gzip": gzip.compress, "bzip2": bz2.compress}
FORMATS = pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)


@FORMATS
@given(content=st.binary(max_size=300), room=st.integers(0, 5))
def test_whole_streams_within_the_limit(compress, content: bytes, room: int) -> None:
    assert decompress(compress(content), len(content) + room, "it") == content


@FORMATS
@given(content=st.binary(min_size=1, max_size=300), data=st.data())
def test_a_limit_is_kept(compress, content: bytes, data: st.DataObject) -> None:
    limit = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError, match=f"it must hold at most {limit} bytes; it holds more"):
        decompress(compress(content), limit, "it")


@FORMATS
def test_what_is_beyond_the_limit_is_not_made(compress) -> None:
    bomb = compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="it must hold at most 1000000 bytes"):
            decompress(bomb, 1_000_000, "it")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@FORMATS
@given(content=st.binary(max_size=300), data=st.data())
def test_truncated_files_are_refused(compress, content: bytes, data: st.DataObject) -> None:
    whole = compress(content)
    kept = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=r"it is truncated after \d+ bytes|it must be a gzip or bzip2 file"):
        decompress(whole[:kept], 1000, "it")


@FORMATS
@given(content=st.binary(max_size=300), data=st.data())
def test_corrupted_files_are_refused_or_hold_the_same(compress, content: bytes, data: st.DataObject) -> None:
    """Some bits count for nothing: of gzip's header its time, and those that fill up the last byte of a stream."""
    whole = bytearray(compress(content))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    found = None
    with suppress(ValueError):
        found = decompress(bytes(whole), 1000, "it")
    assert found in (None, content)


@FORMATS
def test_nearly_every_altered_byte_is_noticed(compress) -> None:
    """Of bzip2's tables a few may be unused."""
    content = bytes(range(256)) * 3
    whole, noticed = compress(content), 0
    for at in range(len(whole)):
        try:
            decompress(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :], 1000, "it")
        except ValueError:
            noticed += 1
    assert noticed > 0.95 * len(whole)


@FORMATS
def test_one_stream_and_nothing_behind_it(compress) -> None:
    with pytest.raises(ValueError, match="it must be one stream; 3 bytes follow it"):
        decompress(compress(b"text") + b"abc", 100, "it")


def test_other_formats_are_named_by_their_beginning() -> None:
    with pytest.raises(ValueError, match="it must be a gzip or bzip2 file; it begins with 504b0304"):
        decompress(b"PK\x03\x04rest", 100, "it")
    with pytest.raises(ValueError, match="it begins with nothing"):
        decompress(b"", 100, "it")
