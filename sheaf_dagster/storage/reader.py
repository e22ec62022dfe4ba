"""Reading a remote file from the start to its end."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from sheaf_dagster.storage.location import Location

__all__ = ["RangeReader"]

_BLOCK_BYTES = 8 * 2**20


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
