"""Joining parts into one file of this machine, as they come."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

from sheaf_dagster.errors import SinkError
from sheaf_dagster.storage.folders import sync_folder
from sheaf_dagster.storage.stores.base import Join, StoredPart

__all__ = ["LocalJoin"]

_COPY_BYTES = 8 * 2**20

_SYNC_BYTES = 64 * 2**20
"""After so many bytes the disk is set to work, so that little is left to wait for at the end."""

_NOT_HERE = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP)


class LocalJoin(Join):
    """A file that grows by parts, until it takes the sink's place.

    Args:
        target: The sink.
        path: Where it grows; what was there is overwritten.
    """

    def __init__(self, target: str, path: str) -> None:
        self._target = target
        self._path = path
        self._file: IO[bytes] | None = None
        self._joined: list[str] = []
        self._unsynced = 0
        self._sync: threading.Thread | None = None
        self._error: OSError | None = None

    def ahead(self, parts: Sequence[StoredPart]) -> None:
        """Adds the parts that come next."""
        if self._file is None:
            self._file = open(self._path, "wb", buffering=0)
            self._joined, self._unsynced, self._error = [], 0, None
        for part in parts:
            with open(part.store.path, "rb", buffering=0) as piece:
                _append(piece, self._file, part.size)
            self._joined.append(part.store.path)
            self._unsynced += part.size
        if self._unsynced >= _SYNC_BYTES and (self._sync is None or not self._sync.is_alive()):
            self._unsynced = 0
            fd = self._file.fileno()
            self._sync = threading.Thread(
                target=self._fsync, args=(fd,), name="sheaf-sync", daemon=True
            )
            self._sync.start()

    def commit(self, parts: Sequence[StoredPart], empty: bytes, prove: Callable[[], None]) -> int:
        """Adds the parts that are missing, sees that all is on the disk, and renames the file."""
        if self._joined != [p.store.path for p in parts[: len(self._joined)]]:
            self.close()  # a chunk was run again after its first part was joined
        try:
            self.ahead(parts[len(self._joined) :])
            size, expected = self._finish(empty), sum(p.size for p in parts)
        finally:
            self.close()
        if size != (expected or len(empty)):
            raise SinkError(
                f"{self._target} can't be written: its parts hold {size} bytes, expected "
                f"{expected}; another process has changed {os.path.dirname(self._path)}. Run again"
            )
        prove()
        os.replace(self._path, self._target)
        sync_folder(os.path.dirname(self._target))
        return size

    def close(self) -> None:
        """Lets go of the file; the next part begins it anew."""
        self._wait()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file, self._joined = None, []

    def _finish(self, empty: bytes) -> int:
        assert self._file is not None
        if not self._joined:
            self._file.write(empty)
        self._wait()
        if self._error is not None:
            raise self._error
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        return size

    def _fsync(self, fd: int) -> None:
        try:
            os.fsync(fd)
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
