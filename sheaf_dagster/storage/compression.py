"""gzip and Zstandard by suffix."""

from __future__ import annotations

import gzip
import hashlib
from typing import IO, Any, Literal

from sheaf_dagster.errors import SourceError
from sheaf_dagster.protocols import version_in

__all__ = ["Codec", "codec_of", "compress", "decompress", "unpacked"]

Codec = Literal["gzip", "zstd"]

_SUFFIXES: dict[str, Codec] = {".gz": "gzip", ".zst": "zstd"}

MAX_RATIO = 1000
MAX_RATIO_FROM = 2**30
"""A file that unpacks to over 1 GiB and to more than 1,000 times its size is refused: JSONL of
requests compresses 5 to 50 times, a decompression bomb a thousand times and more."""


def codec_of(uri: str) -> Codec | None:
    """The codec that a file's suffix names, if any."""
    name = uri.partition("?versionId=")[0] if version_in(uri) else uri
    return next((codec for suffix, codec in _SUFFIXES.items() if name.endswith(suffix)), None)


def compress(data: bytes, codec: Codec | None) -> bytes:
    """A complete member or frame: several of them, one after the other, are a valid file.

    The same data gives the same bytes at any time.
    """
    if codec == "gzip":
        return gzip.compress(data, compresslevel=6, mtime=0)
    if codec == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=3).compress(data)
    return data


def decompress(data: bytes, codec: Codec | None) -> bytes:
    """What ``compress`` was given."""
    if codec == "gzip":
        return gzip.decompress(data)
    if codec == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompress(data)
    return data


class _Counted:
    """A stored file that hashes and counts what is read from it."""

    def __init__(self, raw: IO[bytes], digest: hashlib._Hash | None) -> None:
        self._raw = raw
        self._digest = digest
        self.count = 0
        self.closed = False

    def read(self, n: int = -1) -> bytes:
        data = self._raw.read(n)
        if self._digest is not None:
            self._digest.update(data)
        self.count += len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class _Text:
    """Decompressed text, read in pieces of bounded size, copied to a spool as it passes."""

    def __init__(
        self,
        raw: IO[bytes],
        codec: Codec,
        name: str,
        digest: hashlib._Hash | None,
        spool: IO[bytes] | None,
    ) -> None:
        import pyarrow as pa

        self._counted = _Counted(raw, digest)
        self._stream: Any = pa.CompressedInputStream(pa.PythonFile(self._counted, mode="r"), codec)
        self._codec = codec
        self._name = name
        self._spool = spool
        self._unpacked = 0

    def readinto(self, buffer: memoryview, /) -> int:
        filled = 0
        while filled < len(buffer):
            try:
                piece = self._stream.read(min(len(buffer) - filled, 2**20))
            except OSError as e:
                raise SourceError(
                    f"{self._name} is damaged or cut short, somewhere after "
                    f"{self._unpacked + filled} bytes of its text ({self._codec}: {e}); write the "
                    "file again"
                ) from e
            if not piece:
                break
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._unpacked += filled
        if not self._unpacked and not self._counted.count:
            raise SourceError(
                f"{self._name} is empty, so it is not a valid {self._codec} file (even an empty "
                f"{self._codec} file has a header); write the file again"
            )
        if self._unpacked > max(MAX_RATIO_FROM, MAX_RATIO * self._counted.count):
            raise SourceError(
                f"{self._name} unpacks to more than {MAX_RATIO} times its size; "
                "this looks like a decompression bomb, so reading stopped. If the file is fine, "
                "unpack it and name the plain file"
            )
        if self._spool is not None:
            self._spool.write(buffer[:filled])
        return filled


def unpacked(
    raw: IO[bytes],
    codec: Codec,
    *,
    name: str,
    digest: hashlib._Hash | None = None,
    spool: IO[bytes] | None = None,
) -> _Text:
    """A stream of a compressed file's text.

    Args:
        raw: The stored bytes.
        codec: How they are packed; concatenated members and frames are read through.
        name: Names the file in messages.
        digest: Takes in the stored bytes.
        spool: Receives a copy of the text, so that workers can read ranges of it.

    Raises:
        SourceError: While reading: the file is damaged, cut short, or a decompression bomb.
    """
    return _Text(raw, codec, name, digest, spool)
