"""Files of JSON lines, compressed or not: parts joined are the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sheaf_dagster.storage.compression import Codec, compress, decompress
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import Join

__all__ = ["JsonLines"]


@dataclass(frozen=True)
class JsonLines:
    """A file of JSON lines.

    Attributes:
        codec: How it is compressed.
    """

    codec: Codec | None = None
    written_as = "JSON"
    suffix = "jsonl"

    def stored(self, content: bytes) -> bytes:
        """Lines, compressed."""
        return compress(content, self.codec)

    def content(self, stored: bytes) -> bytes:
        """Lines, unpacked."""
        return decompress(stored, self.codec)

    def of_lines(self, lines: bytes) -> bytes:
        """The lines themselves."""
        return lines

    def lines(self, content: bytes) -> Sequence[bytes]:
        """The lines of a part."""
        return content.split(b"\n")[:-1]

    def answers(self, content: bytes) -> Sequence[bytes]:
        """The lines themselves."""
        return self.lines(content)

    def empty(self) -> bytes:
        """A file of no line: nothing, or a compressed nothing."""
        return compress(b"", self.codec)

    def join(self, file: Join, room: Location) -> Join:
        """Parts as they are, one after the other."""
        return file
