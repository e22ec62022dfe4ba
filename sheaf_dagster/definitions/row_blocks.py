"""Rows on their way into a file: some at a time, as lines or as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sheaf_dagster.storage import LineWriter
from sheaf_dagster.storage.formats import json_rows

__all__ = ["LineBlock", "TableBlock", "blocks_of", "text_of"]

_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class LineBlock:
    """Some rows as lines."""

    held: list[bytes]

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.held)

    def lines(self, most: int | None = None) -> list[bytes]:
        """The first of them as lines of JSON, without their ends."""
        return self.held[:most]

    def write(self, writer: LineWriter) -> None:
        """Appends them to a file."""
        writer.write(text_of(self.held), len(self.held))


@dataclass(frozen=True)
class TableBlock:
    """Some rows as a table."""

    held: Any

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.held.num_rows)

    def lines(self, most: int | None = None) -> list[bytes]:
        """The first of them as lines of JSON, without their ends."""
        return [line for b in self.held.slice(0, most).to_batches() for line in json_rows(b)]

    def write(self, writer: LineWriter) -> None:
        """Appends them to a file."""
        writer.write_table(self.held)


def blocks_of(pieces: Iterator[Any]) -> Iterator[LineBlock | TableBlock]:
    """Lines, about 1 MiB together, and tables, in their order."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        if not isinstance(piece, bytes):
            if held:
                yield LineBlock(held)
                held, size = [], 0
            yield TableBlock(piece)
            continue
        held.append(piece)
        size += len(piece)
        if size >= _BLOCK_BYTES:
            yield LineBlock(held)
            held, size = [], 0
    if held:
        yield LineBlock(held)


def text_of(lines: Sequence[bytes]) -> bytes:
    """Lines as text."""
    return b"".join(b"%b\n" % line for line in lines)
