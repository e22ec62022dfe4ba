"""Joining parts into one file of this machine, as they come."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from sheaf_dagster.storage.parts import Part, PartStore

__all__ = ["LocalJoin"]

_COPY_BYTES = 8 * 2**20

_SYNC_BYTES = 64 * 2**20
"""After so many bytes the disk is set to work, so that little is left to wait for at the end."""

_NOT_HERE = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP)


class LocalJoin:
    """A file that grows by parts, until it takes the sink's place.

    Attributes:
        path: Where it grows; what was there is overwritten.
        parts: What it holds, in order.
    """

    def __init__(self, store: PartStore) -> None:
        self.path = store.folder.child("joined.tmp").uri
        self.parts: list[Part] = []
        self._store = store
        self._file: IO[bytes] = open(self.path, "wb", buffering=0)
        self._unsynced = 0
        self._sync: threading.Thread | None = None
        self._error: OSError | None = None

    def extend(self, parts: Sequence[Part]) -> None:
        """Adds the parts that come next."""
        for part in parts:
            with open(self._store.location(part).uri, "rb", buffering=0) as piece:
                _append(piece, self._file, part.size)
            self.parts.append(part)
            self._unsynced += part.size
        if self._unsynced >= _SYNC_BYTES and (self._sync is None or not self._sync.is_alive()):
            self._unsynced = 0
            self._sync = threading.Thread(target=self._fsync, name="sheaf-sync", daemon=True)
            self._sync.start()

    def finish(self, empty: bytes) -> int:
        """Sees that all is on the disk; returns the size.

        Args:
            empty: What a file without parts holds.

        Raises:
            OSError: It could not be written; now or before.
        """
        with self._file as file:
            if not self.parts:
                file.write(empty)
            self._wait()
            if self._error is not None:
                raise self._error
            os.fsync(file.fileno())
            return file.tell()

    def close(self) -> None:
        """Lets go of the file."""
        self._wait()
        with suppress(OSError):
            self._file.close()

    def _fsync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as e:  # the kernel says it once only
            self._error = e

    def _wait(self) -> None:
        # The thread has the file's number, which may be another file's once this is closed.
        if self._sync is not None:
            self._sync.join()
            self._sync = None


def _append(piece: IO[bytes], target: IO[bytes], size: int) -> None:
    left = size
    # The kernel copies, or shares the blocks where the file system can.
    while left and hasattr(os, "copy_file_range"):
        try:
            n = os.copy_file_range(piece.fileno(), target.fileno(), left)
        except OSError as e:
            if e.errno in _NOT_HERE:
                break
            raise
        if n == 0:
            break
        left -= n
    while left and (block := piece.read(min(left, _COPY_BYTES))):
        view = memoryview(block)
        while view:  # a raw write may stop short
            view = view[target.write(view) :]
        left -= len(block)
