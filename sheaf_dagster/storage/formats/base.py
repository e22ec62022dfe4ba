"""What a format of files is to those who write and read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import Join

__all__ = ["Format"]


class Format(Protocol):
    """How answers are kept in parts, and how parts become a file; travels to workers.

    Attributes:
        written_as: What an answer is written as.
        suffix: Of the names of parts.
    """

    written_as: str
    suffix: str

    def stored(self, content: bytes) -> bytes:
        """What is stored of a part's content: its lines, or a table that was ``packed``."""

    def content(self, stored: bytes) -> bytes:
        """The content of a stored part."""

    def of_lines(self, lines: bytes) -> bytes:
        """The content of a part, of lines of JSON that no contract describes."""

    def lines(self, content: bytes) -> Sequence[bytes]:
        """The rows of a part as lines of JSON, without newlines."""

    def answers(self, content: bytes) -> Sequence[bytes]:
        """The same as they stand in the text of the file (``storage.text_of``)."""

    def empty(self) -> bytes:
        """What a file without parts holds, where ``join`` doesn't make it."""

    def join(self, file: Join, room: Location) -> Join:
        """What makes a file of stored parts.

        Args:
            file: Puts pieces together, byte by byte, as the store of the file does.
            room: Folder for pieces that are none of the parts.
        """
