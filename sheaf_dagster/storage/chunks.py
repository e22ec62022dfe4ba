"""Cutting a JSONL file into line-aligned chunks, in one pass and constant memory.

A chunk is a byte range that holds whole batches. Where the cuts fall depends on the file and
the batch size alone, never on how many workers there are, so that every run of a file has the
same chunks: that is what resume and byte-identical output rest on.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Protocol

import numpy as np

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage.formats.mapped import MAX_LINE_BYTES

__all__ = ["Chunk", "FileScan", "LineScanner", "is_blank", "rows_in", "scan_stream", "split_rows"]

MAX_CHUNKS = 256
"""Chunks that a file of ordinary size has at most: fine enough to balance and resume, coarse
enough that the fixed cost of one (half a millisecond) doesn't count (``make bench``)."""

MAX_CHUNK_BYTES = 16 * 2**20
"""Bytes that an average chunk has at most, before the number of chunks may grow."""

_BLOCK = 4 * 2**20
_BLANK = b" \t\r"
_BOM = b"\xef\xbb\xbf"
_MAX_MARKS = 8 * MAX_CHUNKS


@dataclass(frozen=True)
class Chunk:
    """A byte range that holds whole batches: lines, or a table's rows."""

    index: int
    """Position among the chunks of the job."""
    file: int
    """Which of the job's source files."""
    start: int
    end: int
    first_row: int
    """Position of its first row among the rows of the job."""
    rows: int
    first_line: int
    """Line of the file at which it starts, from 1."""
    crc: int = -1
    """CRC-32 of its bytes when they were validated; -1 before that."""
    invalid: bytes = b""
    """Lines whose rows were found invalid, as bits from the first line on."""
    repeats: bytes = b""
    """Rows that others before them have the content of, packed by whoever has validated it."""
    table: bool = False
    """Whether its bytes are a table's rows in their columns (``TableRows``), not lines."""

    def validated(self, crc: int, invalid: bytes = b"") -> Chunk:
        """The same chunk with the checksum of the bytes that were validated, and what was found."""
        return replace(self, crc=crc, invalid=invalid)


@dataclass(frozen=True)
class FileScan:
    """What one pass over a file found."""

    size: int
    """Bytes of text, after decompression."""
    rows: int
    digest: str
    """``sha256:<hex>`` of the stored bytes."""
    marks: tuple[tuple[int, int, int], ...]
    """(row, offset, line) of the first row of every ``step`` rows."""
    step: int

    def chunks(
        self, batch_size: int, *, file: int = 0, first_index: int = 0, first_row: int = 0
    ) -> list[Chunk]:
        """Chunks of this file, as part ``file`` of a job."""
        if not self.rows:
            return []
        batches = -(-self.rows // batch_size)
        per_chunk = self.step // batch_size
        while -(-batches // per_chunk) > MAX_CHUNKS:
            wider = 2 * per_chunk
            if self.size / self.rows * wider * batch_size > MAX_CHUNK_BYTES:
                break
            per_chunk = wider
        rows_per_chunk = per_chunk * batch_size
        marks = [m for m in self.marks if m[0] % rows_per_chunk == 0]
        chunks = []
        for i, (row, offset, line) in enumerate(marks):
            end_row, end = marks[i + 1][:2] if i + 1 < len(marks) else (self.rows, self.size)
            chunks.append(
                Chunk(first_index + i, file, offset, end, first_row + row, end_row - row, line)
            )
        return chunks


class LineScanner:
    """Counts rows and marks where every ``step`` of them begin, block by block."""

    def __init__(self, batch_size: int, row_limit: int | None = None) -> None:
        self.step = batch_size
        self.rows = 0
        self.lines = 0
        self.size = 0
        self.marks: list[tuple[int, int, int]] = []
        self._limit = row_limit
        self._end: int | None = None
        self._line_start = 0
        self._line_blank = True
        self._head: bytes | None = b""

    @property
    def end(self) -> int:
        """Where the text that counts ends: after the last row, or after row ``row_limit``."""
        return self.size if self._end is None else self._end

    def feed(self, block: bytes | memoryview) -> None:
        """Takes the next block of text; it may end anywhere.

        Raises:
            SourceError: A line is longer than 512 MiB.
        """
        if self._head is not None:  # a byte order mark may come in pieces
            block = self._head + bytes(block) if self._head else block
            if len(block) < 3:
                self._head = bytes(block)
                return
            self._head = None
        self._scan(block)

    def _scan(self, block: bytes | memoryview) -> None:
        base = self.size
        self.size += len(block)
        if self._end is not None or not len(block):
            return
        view = memoryview(block)
        skip = 0
        if base == 0 and bytes(view[:3]) == _BOM:
            skip = 3
            self._line_start = 3
        array = np.frombuffer(view, dtype=np.uint8)
        newlines = np.flatnonzero(array == 10)
        if not len(newlines):
            self._line_blank = self._line_blank and not bytes(view[skip:]).strip(_BLANK)
            self._check_line(self.size - self._line_start)
            return
        first, last = int(newlines[0]), int(newlines[-1])
        self._check_line(base + first - self._line_start)
        # The line that began in an earlier block, then those that lie in this one.
        first_blank = self._line_blank and not bytes(view[skip:first]).strip(_BLANK)
        starts = newlines[:-1] + 1
        lengths = newlines[1:] - starts
        if len(lengths):
            self._check_line(int(lengths.max()))
        heads = array[starts]
        filled = heads > 32
        unsure = np.flatnonzero(~filled & (lengths > 0) & ~((lengths == 1) & (heads == 13)))
        for i in unsure:
            filled[i] = bool(bytes(view[int(starts[i]) : int(newlines[i + 1])]).strip(_BLANK))
        self._mark(
            np.concatenate(([not first_blank], filled)),
            np.concatenate(([self._line_start], starts + base)),
        )
        self.lines += len(newlines)
        self._line_start = base + last + 1
        self._line_blank = not bytes(view[last + 1 :]).strip(_BLANK)

    def finish(self) -> None:
        """Counts a last line that has no newline."""
        if self._head:
            self._scan(self._head)
            self._head = None
        if self._end is None and not self._line_blank:
            self._mark(np.array([True]), np.array([self._line_start]))
            self.lines += 1

    def _mark(self, filled: np.ndarray, starts: np.ndarray) -> None:
        rows = np.flatnonzero(filled)
        if self._limit is not None and self.rows + len(rows) > self._limit:
            keep = self._limit - self.rows
            self._end = int(starts[rows[keep]])
            rows = rows[:keep]
        first = -self.rows % self.step
        for k in range(first, len(rows), self.step):
            line = int(rows[k])
            self.marks.append((self.rows + k, int(starts[line]), self.lines + line + 1))
        self.rows += len(rows)
        while (
            len(self.marks) > _MAX_MARKS
            and self.size / max(self.rows, 1) * 2 * self.step <= MAX_CHUNK_BYTES
        ):
            self.step *= 2
            self.marks = [m for m in self.marks if m[0] % self.step == 0]

    def _check_line(self, length: int) -> None:
        if length > MAX_LINE_BYTES:
            raise SourceError(
                f"line {self.lines + 1} or one soon after it is longer than "
                f"{MAX_LINE_BYTES // 2**20} MiB; is this a JSONL file (one request a line)?"
            )


class _Text(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


def scan_stream(
    stream: IO[bytes] | _Text,
    batch_size: int,
    *,
    row_limit: int | None = None,
    digest: hashlib._Hash | None = None,
) -> FileScan:
    """Scans text from a stream; hashes it on a second core meanwhile.

    Args:
        stream: Anything with ``readinto``.
        batch_size: Rows of a batch.
        row_limit: Rows that count; the rest is hashed only.
        digest: Hash of the stored bytes that the stream itself keeps up to date, where they
            aren't the text (compressed files). None: the text is hashed here.
    """
    scanner = LineScanner(batch_size, row_limit)
    own = hashlib.sha256() if digest is None else None
    with _Hasher(own) as hasher:
        for block in _blocks(stream, hasher):
            scanner.feed(block)
    scanner.finish()
    used = own if own is not None else digest
    assert used is not None
    return FileScan(
        size=scanner.end,
        rows=scanner.rows,
        digest=f"sha256:{used.hexdigest()}",
        marks=tuple(scanner.marks),
        step=scanner.step,
    )


def _blocks(stream: IO[bytes] | _Text, hasher: _Hasher) -> Iterator[memoryview]:
    # Two buffers in turn: one is read into and scanned while the other is still being hashed.
    buffers = (bytearray(_BLOCK), bytearray(_BLOCK))
    turn = 0
    while True:
        view = memoryview(buffers[turn])
        n = stream.readinto(view)  # type: ignore[union-attr, arg-type]
        if not n:
            return
        block = view[:n]
        hasher.start(block)
        yield block
        turn = 1 - turn


class _Hasher:
    """Hashes blocks in a thread; hashlib lets go of the GIL for blocks of this size."""

    def __init__(self, digest: hashlib._Hash | None) -> None:
        self._digest = digest
        self._block: memoryview | None = None
        self._ready = threading.Semaphore(0)
        self._idle = threading.Semaphore(1)
        self._thread = threading.Thread(target=self._run, daemon=True, name="sheaf-digest")

    def __enter__(self) -> _Hasher:
        if self._digest is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._digest is not None:
            self._idle.acquire()
            self._block = None
            self._ready.release()
            self._thread.join()

    def start(self, block: memoryview) -> None:
        """Takes a block once the one before it is hashed, so that its buffer is free again."""
        if self._digest is not None:
            self._idle.acquire()
            self._block = block
            self._ready.release()

    def _run(self) -> None:
        assert self._digest is not None
        while True:
            self._ready.acquire()
            block = self._block
            if block is None:
                return
            self._digest.update(block)
            self._idle.release()


def split_rows(data: bytes, first_line: int) -> list[tuple[int, bytes]]:
    """(line number, line) of every row in a chunk's bytes; blank lines are left out."""
    return list(rows_in(data, first_line))


def rows_in(data: bytes, first_line: int) -> Iterator[tuple[int, bytes]]:
    """The same one by one: a chunk's lines all at once are more than a processor's cache holds."""
    # BytesIO looks for newlines many bytes at a time, bytes.split byte by byte.
    return (
        (number, line.rstrip(b"\n"))
        for number, line in enumerate(io.BytesIO(data), first_line)
        if line[0] > 32 or not is_blank(line)
    )


def is_blank(line: bytes) -> bool:
    """Whether a line, of which its end at least is there, is not a row."""
    return line[0] <= 32 and not line.strip(_BLANK + b"\n")
