"""The text of a file of lines whose fields have other names, or have others beside them."""

from __future__ import annotations

import hashlib
from typing import IO, Protocol

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage.formats.fields import FieldMap

__all__ = ["MAX_LINE_BYTES", "MappedText", "Text"]

MAX_LINE_BYTES = 512 * 2**20
"""A longer line is refused: no worker could hold it beside the model."""

_BLOCK_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"


class Text(Protocol):
    """A stream of text."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fills the beginning of a buffer; 0 at the end."""


class MappedText:
    """A stream of lines as another one has them, each with its fields as a map says.

    Lines keep their numbers: blank ones stay, and so does what is not a row.

    Args:
        text: The other stream.
        fields: The map.
        digest: Takes in what is read of the other stream.
        spool: Receives a copy of the text, so that workers can read ranges of it.
    """

    def __init__(
        self,
        text: Text,
        fields: FieldMap,
        digest: hashlib._Hash | None = None,
        spool: IO[bytes] | None = None,
    ) -> None:
        self._text = text
        self._fields = fields
        self._digest = digest
        self._spool = spool
        self._block = memoryview(bytearray(_BLOCK_BYTES))
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._first = True
        self._ended = False
        self._ready = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills the buffer as far as the lines at hand reach; 0 after the last one."""
        while not self._ready and not self._ended:
            self._ready = memoryview(self._next())
            if self._spool is not None:
                self._spool.write(self._ready)
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def _next(self) -> bytes:
        """The lines that end in the next block, mapped."""
        n = self._text.readinto(self._block)
        if not n:
            self._ended = True
            rest, self._begun = b"".join(self._begun), []
            return self._line(rest) if rest else b""
        block = bytes(self._block[:n])
        if self._digest is not None:
            self._digest.update(block)
        whole, newline, rest = block.rpartition(b"\n")
        lines = b"".join([*self._begun, whole]).split(b"\n") if newline else []
        self._begun = [rest] if newline else [*self._begun, rest]
        self._begun_bytes = len(rest) if newline else self._begun_bytes + len(rest)
        if self._begun_bytes > MAX_LINE_BYTES:
            raise SourceError("a line is longer than 512 MiB")
        return b"".join(self._line(line) + b"\n" for line in lines)

    def _line(self, line: bytes) -> bytes:
        if self._first:
            self._first = False
            if line.startswith(_BOM):
                return _BOM + self._fields.line(line.removeprefix(_BOM))
        return self._fields.line(line) if line.strip() else line
