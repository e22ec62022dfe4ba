"""Sorting records of many rows by their digests, in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Digests", "SortedSpill", "digests_of"]

Digests = NDArray[np.void]
"""Digests of rows as two numbers each, ``high`` and ``low``."""

_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])

_BUCKETS = 64
"""Of ten million rows each bucket holds a few megabytes."""

_BUCKET_SHIFT = np.uint64(64 - 6)

_IN_MEMORY = 2**16
_AT_A_TIME = 2**16
"""Records that are put into their buckets together: a few at a time take as long each time."""


def digests_of(packed: bytes) -> Digests:
    """Digests as they are compared and sorted."""
    return np.frombuffer(packed, dtype=_DIGEST)


class SortedSpill:
    """Takes records in any order and gives them back sorted; on disk where there are many.

    Args:
        dtype: Of the records: they are sorted by ``high``, and by ``low`` where they have it.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._waiting: list[NDArray[np.void]] = []
        self._number = 0
        self._buckets: dict[int, SpooledTemporaryFile[bytes]] = {}

    def close(self) -> None:
        """Lets go of the records."""
        self._waiting = []
        for file in self._buckets.values():
            file.close()

    def add(self, records: NDArray[np.void]) -> None:
        """Takes some records."""
        self._waiting.append(records)
        self._number += len(records)
        if self._number >= _AT_A_TIME:
            self._put_away()

    def in_order(self, *, repeated: bool = False) -> Iterator[NDArray[np.void]]:
        """All records, sorted by digest, some at a time; equal ones are together, as they came.

        Args:
            repeated: Leave out those among which no two are equal.
        """
        for records in self._in_buckets():
            if not repeated or _has_equal(np.sort(records["high"])):
                yield self._sorted(records)

    def _in_buckets(self) -> Iterator[NDArray[np.void]]:
        if self._waiting and not self._buckets:
            yield self._taken()
            return
        if self._waiting:
            self._put_away()
        for _, file in sorted(self._buckets.items()):
            file.seek(0)
            yield np.frombuffer(file.read(), dtype=self._dtype)

    def _put_away(self) -> None:
        records = self._taken()
        # Of numbers this short NumPy's sort takes a fifth of the time.
        buckets = (records["high"] >> _BUCKET_SHIFT).astype(np.uint8)
        order = np.argsort(buckets, kind="stable")
        cuts = np.searchsorted(buckets[order], np.arange(_BUCKETS + 1))
        data, size = memoryview(records[order].tobytes()), records.itemsize
        for bucket, (start, stop) in enumerate(pairwise(cuts)):
            if start < stop:
                if bucket not in self._buckets:
                    self._buckets[bucket] = SpooledTemporaryFile(_IN_MEMORY)
                self._buckets[bucket].write(data[start * size : stop * size])

    def _taken(self) -> NDArray[np.void]:
        waiting, self._waiting, self._number = self._waiting, [], 0
        return np.concatenate(waiting)

    def _sorted(self, records: NDArray[np.void]) -> NDArray[np.void]:
        order = np.argsort(records["high"])
        if _has_equal(records["high"][order]):  # else there is nothing more to put in order
            keys = [records[name] for name in ("low", "high") if name in (self._dtype.names or ())]
            order = np.lexsort(keys)
        return records[order]


def _has_equal(ordered: NDArray[np.uint64]) -> bool:
    """Whether two of some sorted numbers are equal."""
    return bool((ordered[1:] == ordered[:-1]).any())
