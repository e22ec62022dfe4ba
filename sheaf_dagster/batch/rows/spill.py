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

_IN_MEMORY = 2**18


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
        self._buckets: dict[int, SpooledTemporaryFile[bytes]] = {}

    def close(self) -> None:
        """Lets go of the records."""
        for file in self._buckets.values():
            file.close()

    def add(self, records: NDArray[np.void]) -> None:
        """Takes some records."""
        buckets = (records["high"] // np.uint64(2**64 // _BUCKETS)).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        cuts = np.searchsorted(buckets[order], np.arange(_BUCKETS + 1))
        for bucket, (start, stop) in enumerate(pairwise(cuts)):
            if start < stop:
                if bucket not in self._buckets:
                    self._buckets[bucket] = SpooledTemporaryFile(_IN_MEMORY)
                self._buckets[bucket].write(records[order[start:stop]].tobytes())

    def in_order(self) -> Iterator[NDArray[np.void]]:
        """All records, sorted by digest, some at a time; equal ones are together, as they came."""
        for _, file in sorted(self._buckets.items()):
            file.seek(0)
            records = np.frombuffer(file.read(), dtype=self._dtype)
            keys = [records[name] for name in ("low", "high") if name in (self._dtype.names or ())]
            yield records[np.lexsort(keys)]
