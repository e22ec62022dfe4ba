"""The text of a file, as JSON lines, whatever its suffix says that it is.

Plain files are read as they are; what else there is gives its text as a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from sheaf_dagster.storage.compression import codec_of, unpacked
from sheaf_dagster.storage.formats.parquet import ParquetText, is_parquet
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import store_at

__all__ = ["Text", "is_plain", "open_text"]

_BLOCK_BYTES = 4 * 2**20


class Text(Protocol):
    """A stream of text."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fills the beginning of a buffer; 0 at the end."""


def is_plain(uri: str) -> bool:
    """Whether a file's stored bytes are its text, so that ranges of it can be read as they are."""
    return codec_of(uri) is None and not is_parquet(uri)


@contextmanager
def open_text(
    location: Location, *, digest: hashlib._Hash | None = None, spool: IO[bytes] | None = None
) -> Iterator[Text]:
    """Opens a file's text.

    Args:
        location: The file; its suffix says what it is.
        digest: Takes in the stored bytes, where they aren't the text.
        spool: Receives a copy of the text, where it isn't what is stored.

    Raises:
        SourceNotFoundError: There is no such file.
        SourceError: Here or while reading: it is damaged, cut short, or a decompression bomb.
    """
    store, codec = store_at(location), codec_of(location.uri)
    with store.open() as raw:
        if is_parquet(location.uri):
            # Read from its end on, so that its bytes don't pass in order.
            while digest is not None and (block := raw.read(_BLOCK_BYTES)):
                digest.update(block)
            yield ParquetText(store, spool)
        elif codec is not None:
            yield unpacked(raw, codec, name=location.uri, digest=digest, spool=spool)
        else:
            yield raw  # type: ignore[misc]
