"""Compressed files that need not be trusted."""

import bz2
import zlib


def decompress(content: bytes, limit: int, name: str) -> bytes:
    """What one whole stream of gzip or bzip2 holds.

    Args:
      limit: bytes that it may hold; more are not made.
      name: of the file, for what is raised.

    Raises:
      ValueError: it is neither, is truncated or corrupt, holds more, or something follows it.
    """
    if content.startswith(b"\x1f\x8b"):
        decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    elif content.startswith(b"BZh"):
        decompressor = bz2.BZ2Decompressor()
    else:
        raise ValueError(f"{name} must be a gzip or bzip2 file; it begins with {content[:4].hex() or 'nothing'}")
    try:
        # One byte more than it may hold: what is within the limit is then read to its end, check sum and all.
        data = decompressor.decompress(content, limit + 1)
    except (zlib.error, OSError) as error:
        raise ValueError(f"{name} is corrupt: {error}") from None
    if len(data) > limit:
        raise ValueError(f"{name} must hold at most {limit} bytes; it holds more")
    if not decompressor.eof:
        raise ValueError(f"{name} is truncated after {len(data)} bytes")
    if decompressor.unused_data:
        raise ValueError(f"{name} must be one stream; {len(decompressor.unused_data)} bytes follow it")
    return data
