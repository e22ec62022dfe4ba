"""Answers of an earlier output that take their places in a new one, so that other rows alone are run.

Each chunk has a *table* of them: where in the earlier output the answer of each of its rows is, or
that the row is to be run. The driver writes the tables beside the parts, chunk by chunk, and workers
read them there: neither memory nor messages grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf_dagster.storage import Chunk, Location, read_ranges, store_at

__all__ = ["KEPT", "KEPT_TOKENS", "KeptAnswers", "Table", "table_of"]

KEPT = "k"
"""Under which letter a part counts its kept answers."""

KEPT_TOKENS = {"prompt": "x", "output": "y", "hit": "z"}
"""Likewise the tokens of these, which nobody pays for again."""

_ENTRY = np.dtype([("start", "<u8"), ("length", "<u4")])

Table = NDArray[np.void]
"""One entry a row of a chunk: the place of its answer in the text of the earlier output. A row whose
length is 0 is run."""

_GAP = 64 * 2**10
"""Bytes between two answers that are read along, rather than asked for apart."""

_RANGE = 16 * 2**20


def table_of(starts: NDArray[Any], lengths: NDArray[Any]) -> Table:
    """A table of places and lengths (0: the row is run)."""
    table = np.empty(len(lengths), dtype=_ENTRY)
    table["start"], table["length"] = starts, lengths
    return table


@dataclass(frozen=True)
class KeptAnswers:
    """The answers that a file's workers keep, and how they are matched to rows.

    Attributes:
        answers: The text of the earlier output.
        folder: Where the tables are.
        proven: The rows are known to be those that were answered. If not, only an id that is
            derived from a row's content shows that.
    """

    answers: Location
    folder: Location
    proven: bool

    def write(self, chunk: int, table: Table) -> None:
        """Leaves a chunk's table for whoever runs it."""
        store_at(self._place(chunk)).write(table.tobytes())

    def lines(self, chunk: Chunk) -> list[bytes | None]:
        """The answers of a chunk's rows, without newlines; None: the row is run."""
        table = np.frombuffer(store_at(self._place(chunk.index)).read(), dtype=_ENTRY)
        found: list[bytes | None] = [None] * len(table)
        groups = list(_groups(table))
        reads = read_ranges([(self.answers, start, end) for _, start, end in groups])
        for (rows, start, _), read in zip(groups, reads, strict=True):
            data = read()
            places = zip(rows, table["start"][rows] - start, table["length"][rows], strict=True)
            for row, at, length in places:
                found[row] = data[at : at + length]
        return found

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
