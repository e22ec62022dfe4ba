"""Checksums of stored bytes, short enough for a file's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from zlib_ng.zlib_ng import crc32

__all__ = ["checksum_of", "is_md5"]


def checksum_of(blocks: Iterable[bytes], *, md5: bool) -> str:
    """The checksum of bytes that come in blocks, in hex.

    Args:
        blocks: The bytes, in order.
        md5: MD5, which is an S3 object's ETag where it was put in one request and isn't encrypted
            with a key of one's own; else CRC-32, which costs next to nothing.
    """
    if md5:
        digest = hashlib.md5(usedforsecurity=False)
        for block in blocks:
            digest.update(block)
        return digest.hexdigest()
    crc = 0
    for block in blocks:
        crc = crc32(block, crc)
    return f"{crc:08x}"


def is_md5(checksum: str) -> bool:
    """Whether a checksum is an MD5."""
    return len(checksum) == 32
