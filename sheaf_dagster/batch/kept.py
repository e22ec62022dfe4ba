"""Answers of an earlier output that take their places in a new one, so that other rows alone are run.

Each chunk has a *table* of them: where in the earlier output the answer of each of its rows is, or
that the row is to be run. The driver writes the tables beside the parts, chunk by chunk, and workers
read them there: neither memory nor messages grow with the file. The table of a chunk with no row to
run stays in the driver, which makes that part itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage import Chunk, Location, read_ranges, store_at

__all__ = [
    "KEPT",
    "KEPT_TOKENS",
    "LINES",
    "LOST",
    "REPEATED",
    "UNFILLED",
    "KeptAnswers",
    "Lines",
    "Table",
    "has_repeats",
    "lines_of",
    "read_lines_of",
    "repeat_rows",
    "table_of",
    "write_lines",
]

KEPT = "k"
"""Under which letter a part counts its kept answers."""

KEPT_TOKENS = {"prompt": "x", "output": "y", "hit": "z"}
"""Likewise the tokens of these, which nobody pays for again."""

UNFILLED = "u"
"""Likewise its rows that are to have the answer of an equal row, and have none yet."""

REPEATED = "w"
"""Likewise its rows that have the answer of an equal row of the same source."""

LOST = "l"
"""Likewise its rows that were run although there was to be an answer: it is no longer in its place."""

_ENTRY = np.dtype([("start", "<u8"), ("length", "<u4"), ("check", "<u4")])

_AS_ROW = 2**32 - 1
"""A length that says: as the row at position ``start``."""

LINES = np.dtype([("length", "<u4"), ("check", "<u4"), ("answers", "?")])

Lines = NDArray[np.void]
"""One entry a line of a part: its length without the newline, its CRC-32, and whether it is an
answer, no error row."""

Table = NDArray[np.void]
"""One entry a row of a chunk: the place of its answer in the text of the earlier output. A row whose
length is 0 is run; one may also be marked as equal to another row of the source."""

_GAP = 64 * 2**10
"""Bytes between two answers that are read along, rather than asked for apart."""

_RANGE = 16 * 2**20


def table_of(
    starts: NDArray[Any], lengths: NDArray[Any], checks: NDArray[Any] | None = None
) -> Table:
    """A table of places and lengths (0: the row is run).

    Args:
        starts: Offsets in the text.
        lengths: Bytes without the newline.
        checks: CRC-32 of the answers, where ``KeptAnswers`` is ``checked``.
    """
    table = np.zeros(len(lengths), dtype=_ENTRY)
    table["start"], table["length"] = starts, lengths
    if checks is not None:
        table["check"] = checks
    return table


def repeat_rows(table: Table, rows: NDArray[Any], first: NDArray[Any]) -> None:
    """Says in a table that some rows are as others, whose positions in the source follow."""
    table["start"][rows], table["length"][rows] = first, _AS_ROW


def has_repeats(table: Table) -> bool:
    """Whether any of a table's rows is to have the answer of an equal one."""
    return bool((table["length"] == _AS_ROW).any())


def lines_of(lines: Sequence[bytes], answers: NDArray[np.bool_]) -> Lines:
    """What an index needs to know of a part's lines.

    Args:
        lines: Without newlines.
        answers: Which of them are answers.
    """
    found = np.empty(len(lines), dtype=LINES)
    found["length"] = [len(line) for line in lines]
    found["check"] = [crc32(line) for line in lines]
    found["answers"] = answers
    return found


def write_lines(folder: Location, chunk: int, lines: Lines) -> None:
    """Leaves that beside a part.

    Args:
        folder: Where the parts are.
        chunk: The part's chunk.
        lines: What ``lines_of`` gave.
    """
    store_at(_lines_of(folder, chunk)).write(lines.tobytes())


def read_lines_of(folder: Location, chunk: int) -> Lines:
    """What ``write_lines`` has left; of no lines where it isn't whole."""
    try:
        data = store_at(_lines_of(folder, chunk)).read()
    except FileNotFoundError:
        data = b""
    return np.frombuffer(data if len(data) % LINES.itemsize == 0 else b"", dtype=LINES)


def _lines_of(folder: Location, chunk: int) -> Location:
    return folder.child(f"lines-{chunk:08d}")


@dataclass(frozen=True)
class KeptAnswers:
    """The answers that a file's workers keep, and how they are matched to rows.

    Attributes:
        answers: The text of the earlier output.
        folder: Where the tables are.
        proven: The rows are known to be those that were answered. If not, only an id that is
            derived from a row's content shows that.
        checked: They are known by their content, and the answers by their checks: one that isn't
            what it was is not kept, and a row's own id is put into the others.
    """

    answers: Location | None
    folder: Location
    proven: bool
    checked: bool = False

    def write(self, chunk: int, table: Table) -> None:
        """Leaves a chunk's table for whoever runs it."""
        store_at(self._place(chunk)).write(table.tobytes())

    def has_none(self, chunk: Chunk) -> bool:
        """Whether all of a chunk's rows are run."""
        return not self.table(chunk.index)["length"].any()

    def lines(
        self, chunk: Chunk, table: Table | None = None
    ) -> tuple[list[bytes | int | None], int]:
        """What there is for each of a chunk's rows.

        Args:
            chunk: The chunk.
            table: Its table, where that wasn't written.

        The answer, without newline; the position of the row whose answer is also its own; None: the
        row is run. Then how many rows are run because their answer isn't in its place any more.
        """
        table = self.table(chunk.index) if table is None else table.copy()
        found: list[bytes | int | None] = [None] * len(table)
        repeats = np.flatnonzero(table["length"] == _AS_ROW)
        for row, first in zip(repeats.tolist(), table["start"][repeats].tolist(), strict=True):
            found[row] = first
        table["length"][repeats] = 0
        lost = 0
        if (answers := self.answers) is None:
            return found, lost
        groups = list(_groups(table))
        reads = read_ranges([(answers, start, end) for _, start, end in groups])
        for (rows, start, _), read in zip(groups, reads, strict=True):
            data = self._data(read)
            places = zip(
                rows.tolist(),
                (table["start"][rows] - np.uint64(start)).tolist(),
                table["length"][rows].tolist(),
                table["check"][rows].tolist(),
                strict=True,
            )
            for row, at, length, check in places:
                line = data[at : at + length]
                if not self.checked or (len(line) == length and crc32(line) == check):
                    found[row] = line
                else:
                    lost += 1
        return found, lost

    def _data(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except SourceError:
            if self.checked:  # the rows are run
                return b""
            raise

    def table(self, chunk: int) -> Table:
        """The table of a chunk."""
        return np.frombuffer(store_at(self._place(chunk)).read(), dtype=_ENTRY).copy()

    def repeated(self, chunk: int) -> NDArray[np.int64]:
        """For each row of a chunk the position of the row whose answer it has, or -1."""
        table = self.table(chunk)
        return np.where(table["length"] == _AS_ROW, table["start"].astype(np.int64), -1)

    def _place(self, chunk: int) -> Location:
        return self.folder.child(f"kept-{chunk:08d}")


def _groups(table: Table) -> Iterator[tuple[NDArray[np.int64], int, int]]:
    """Rows whose answers are read together, with the range that holds them."""
    kept = np.flatnonzero(table["length"])
    kept = kept[np.argsort(table["start"][kept], kind="stable")]
    if not len(kept):
        return
    starts = table["start"][kept].astype(np.int64)
    ends = starts + table["length"][kept]
    far = starts[1:] - ends[:-1] > _GAP
    full = starts[1:] // _RANGE != starts[:-1] // _RANGE
    cuts = np.flatnonzero(far | full) + 1
    for rows, begun, ended in zip(*(np.split(a, cuts) for a in (kept, starts, ends)), strict=True):
        yield rows, int(begun[0]), int(ended.max())
