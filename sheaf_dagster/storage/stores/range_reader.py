"""A remote file as a stream, with a request under way before its bytes are needed."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["RangeReader"]

_BLOCK_BYTES = 8 * 2**20


class RangeReader(io.RawIOBase):
    """The bytes of a remote file, in ranged requests, the next one under way meanwhile.

    Each range is retried on its own and comes whole or raises: a connection that breaks can
    neither end the file early nor start it anew.

    Args:
        read: Gives the bytes from a start to an end (exclusive).
        size: Bytes of the file.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read
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
        self._next = self._pool.submit(self._read_range, start, end) if start < end else None
