"""Whole files of lines, in one process: streamed in, streamed out, committed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage.chunks import split_rows
from sheaf_dagster.storage.formats import (
    AS_THEY_ARE,
    FieldMap,
    Text,
    is_plain,
    open_text,
    packed,
)
from sheaf_dagster.storage.formats.mapped import MAX_LINE_BYTES
from sheaf_dagster.storage.location import Location, sink_errors
from sheaf_dagster.storage.parts import Part
from sheaf_dagster.storage.sink import Sink
from sheaf_dagster.storage.stores import store_at

__all__ = ["LineWriter", "read_blocks", "read_lines", "text_of"]

_BLOCK_BYTES = 4 * 2**20

_PART_BYTES = 16 * 2**20
"""S3 puts pieces of 5 MiB and more together by itself; a compressed part is several times
smaller than its text."""

_BOM = b"\xef\xbb\xbf"


class LineWriter:
    r"""Writes a file of lines piece by piece; it appears whole when the block ends, or not at all.

    Example::

        with LineWriter(Location.of("out.jsonl.gz")) as writer:
            writer.write(b'{"a": 1}\n', rows=1)

    Compressed by suffix. Holds at most 16 MiB and the piece at hand.

    Attributes:
        rows: Rows written so far.
        size: Stored bytes, once the block has ended.
    """

    def __init__(self, location: Location) -> None:
        self.rows = 0
        self.size = 0
        self._location = location
        self._parts: list[Part] = []
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._held_rows = 0

    def __enter__(self) -> Self:
        self._target = Sink(self._location).hold()
        try:
            self._target.open_run(uuid4().hex, resume=False)
        except BaseException:
            self._target.release()
            raise
        return self

    def write(self, lines: bytes, rows: int) -> None:
        """Adds whole lines, the last one ended too."""
        self._held.append(lines)
        self._held_bytes += len(lines)
        self._held_rows += rows
        self.rows += rows
        if self._held_bytes >= _PART_BYTES:
            self._flush()

    def write_table(self, table: Any) -> None:
        """Adds the rows of an Arrow table, with its types, to a Parquet file."""
        if self._held:
            self._flush()
        most = max(1, _PART_BYTES * table.num_rows // max(table.nbytes, 1))
        for start in range(0, table.num_rows, most) or (0,):
            piece = table.slice(start, most)
            self._add(packed(piece), piece.num_rows)
        self.rows += table.num_rows

    def _flush(self) -> None:
        content = self._target.sink.format.of_lines(b"".join(self._held))
        self._add(content, self._held_rows)
        self._held, self._held_bytes, self._held_rows = [], 0, 0

    def _add(self, content: bytes, rows: int) -> None:
        store, chunk = self._target.store, len(self._parts)
        self._parts.append(store.write(chunk, content, rows=rows, error_rows=0, non_finite=0))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._target as target:
            try:
                if error is None:
                    if self._held:
                        self._flush()
                    self.size = target.commit(self._parts)
            finally:
                target.discard()  # where nothing was committed


def read_blocks(location: Location, fields: FieldMap = AS_THEY_ARE) -> Iterator[bytes]:
    """The text of a file in pieces of whole lines, about 4 MiB each; whatever its suffix says that it is.

    Raises:
        SourceNotFoundError: There is no such file.
        SourceError: It can't be read, or holds a line of more than 512 MiB.
    """
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    rest: list[bytes] = []
    rest_bytes = 0
    first = True
    with open_text(location, fields=fields) as stream:
        while n := _fill(stream, buffer):
            block = bytes(buffer[:n])
            if first:
                block, first = block.removeprefix(_BOM), False
            cut = block.rfind(b"\n") + 1
            if cut:
                yield b"".join([*rest, block[:cut]])
                rest, rest_bytes = [], 0
            rest.append(block[cut:])
            rest_bytes += len(block) - cut
            if rest_bytes > MAX_LINE_BYTES:
                raise SourceError(f"{location.uri}: a line is longer than 512 MiB")
    if rest_bytes:
        yield b"".join([*rest, b"\n"])


def _fill(stream: Text, buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer):
        n = stream.readinto(buffer[filled:])
        if not n:
            break
        filled += n
    return filled


def read_lines(location: Location, fields: FieldMap = AS_THEY_ARE) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of every row of a file, in constant memory.

    Raises:
        SourceNotFoundError: There is no such file.
        SourceError: It can't be read.
    """
    number = 1
    for block in read_blocks(location, fields):
        yield from split_rows(block, number)
        number += block.count(b"\n")


def text_of(location: Location, spool: Callable[[], Location]) -> Location:
    """Where ranges of an output's text can be read: the file itself, or an unpacked copy.

    The text of a table is that of its answers alone. The fields of the requests (``keep``) are not
    in it: their types are those of the whole file, which no part of it knows.

    Args:
        location: The file.
        spool: Gives the folder for the copy; asked only where one is needed.

    Raises:
        SourceError: The file can't be read.
    """
    if is_plain(location.uri):
        return location
    copy = spool().child("kept.jsonl")
    with sink_errors(copy):
        store_at(copy).make_parents()
        target = store_at(copy).create()
    with target, open_text(location, spool=target, kept=False) as text:
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        while text.readinto(buffer):
            pass
    return copy
