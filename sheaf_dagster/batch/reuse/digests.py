"""The digests of a source's rows, on the driver's disk, and rows of equal content among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sheaf_dagster.batch.rows.content import DIGEST_BYTES
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.spill import Digests, SortedSpill, digests_of
from sheaf_dagster.storage import Chunk

__all__ = ["Repeats", "RowDigests"]

_PLACED = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


class RowDigests:
    """The digests of all rows of a source, as validating them found."""

    def __init__(self) -> None:
        self._file: IO[bytes] = TemporaryFile()

    def taken_from(self, findings: Iterable[ChunkFindings]) -> Iterator[ChunkFindings]:
        """Hands findings on, and takes the digests out of them."""
        for found in findings:
            self._file.write(found.digests)
            found.digests = b""
            yield found

    def of(self, chunk: Chunk) -> Digests:
        """The digests of a chunk's rows; all zeros for those that are invalid."""
        self._file.seek(chunk.first_row * DIGEST_BYTES)
        return digests_of(self._file.read(chunk.rows * DIGEST_BYTES))

    def close(self) -> None:
        """Gives the disk back."""
        self._file.close()


class Repeats:
    """Rows whose content an earlier row of the source has.

    Args:
        digests: Of all rows.
        chunks: All chunks.
    """

    def __init__(self, digests: RowDigests, chunks: Sequence[Chunk]) -> None:
        rows, firsts = [_NONE], [_NONE]
        with closing(SortedSpill(_PLACED)) as spill:
            for chunk in chunks:
                some = digests.of(chunk)
                placed = np.empty(len(some), dtype=_PLACED)
                placed["high"], placed["low"] = some["high"], some["low"]
                placed["row"] = np.arange(chunk.first_row, chunk.first_row + len(some))
                spill.add(placed[(placed["high"] != 0) | (placed["low"] != 0)])
            for records in spill.in_order(repeated=True):
                new = np.ones(len(records), dtype=bool)
                new[1:] = (records["high"][1:] != records["high"][:-1]) | (
                    records["low"][1:] != records["low"][:-1]
                )
                begin = np.maximum.accumulate(np.where(new, np.arange(len(records)), 0))
                rows.append(records["row"][~new])
                firsts.append(records["row"][begin[~new]])
        found = np.concatenate(rows)
        order = np.argsort(found)
        self._rows, self._firsts = found[order], np.concatenate(firsts)[order]

    def of(self, chunk: Chunk) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of a chunk, counted from its first, and the positions of the rows they repeat."""
        ends = (chunk.first_row, chunk.first_row + chunk.rows)
        start, stop = np.searchsorted(self._rows, ends)
        return self._rows[start:stop] - chunk.first_row, self._firsts[start:stop]


_NONE = np.empty(0, dtype=np.int64)
