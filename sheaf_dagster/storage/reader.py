"""Reading remote files with requests under way before their bytes are needed."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from sheaf_dagster.storage.location import Location

__all__ = ["RangeReader", "read_ranges"]

_BLOCK_BYTES = 8 * 2**20

_RANGES_AHEAD = 3
_AHEAD_BYTES = 32 * 2**20
"""Bytes that ranges under way may have beside the one that is used."""


class RangeReader(io.RawIOBase):
    """The bytes of a remote file, in ranged requests, the next one under way meanwhile.

    Each range is retried on its own and comes whole or raises: a connection that breaks can
    neither end the file early nor start it anew.
    """

    def __init__(self, location: Location, size: int) -> None:
        self._location = location
        self._size = size
        self._asked = 0
        self._block = memoryview(b"")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sheaf-reader")
        self._next: Future[bytes] | None = None
        self._ask()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fills the buffer as far as the current block reaches; 0 at the end of the file."""
        if not self._block:
            if self._next is None:
                return 0
            self._block = memoryview(self._next.result())
            self._ask()
        view = memoryview(buffer).cast("B")
        n = min(len(view), len(self._block))
        view[:n] = self._block[:n]
        self._block = self._block[n:]
        return n

    def close(self) -> None:
        """Lets go of what is under way."""
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _ask(self) -> None:
        start, end = self._asked, min(self._asked + _BLOCK_BYTES, self._size)
        self._asked = end
        self._next = (
            self._pool.submit(self._location.read_range, start, end) if start < end else None
        )


def read_ranges(
    wanted: Sequence[tuple[Location, int, int]],
) -> Iterator[Callable[[], bytes]]:
    """For each range, in order, a call that gives its bytes or raises why they can't be read.

    Ranges of remote files are asked for a few ahead of the one that is used.

    Args:
        wanted: Location, start and end (exclusive).
    """
    if all(location.is_local for location, _, _ in wanted) or len(wanted) < 2:
        for location, start, end in wanted:
            yield partial(location.read_range, start, end)
        return
    pool = ThreadPoolExecutor(_RANGES_AHEAD, thread_name_prefix="sheaf-ahead")
    under_way: deque[tuple[Future[bytes], int]] = deque()
    asked = 0
    try:
        for _ in wanted:
            while asked < len(wanted) and _room(under_way, wanted[asked]):
                location, start, end = wanted[asked]
                under_way.append((pool.submit(location.read_range, start, end), end - start))
                asked += 1
            future, _ = under_way.popleft()
            yield future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _room(under_way: deque[tuple[Future[bytes], int]], range: tuple[Location, int, int]) -> bool:
    held = sum(size for _, size in under_way)
    few = len(under_way) <= _RANGES_AHEAD
    return not under_way or (few and held + range[2] - range[1] <= _AHEAD_BYTES)
