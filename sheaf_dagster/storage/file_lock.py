"""One job at a time on a sink of this machine, by a lock that ends with its process."""

from __future__ import annotations

import os
from contextlib import suppress

from sheaf_dagster.errors import SinkBusyError
from sheaf_dagster.storage.folders import make_folder

__all__ = ["FileLock"]


class FileLock:
    """The lock of one sink: a file in the folder aside, both of which go when nothing else is there.

    Args:
        path: The file.
        what: Names the sink in messages.
    """

    def __init__(self, path: str, what: str) -> None:
        self._path = path
        self._what = what
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._fd is not None and self._is_in_place(self._fd)

    def take(self) -> None:
        """Takes the lock.

        Raises:
            SinkBusyError: A running job holds it.
            OSError: The file can't be made.
        """
        import fcntl

        while True:
            make_folder(os.path.dirname(self._path))
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # the last holder has just removed the folder
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise SinkBusyError(
                    f"{self._what} is being written by another job; wait until it has finished, "
                    "or write to another sink"
                ) from None
            # The last holder may have removed the file between our open and our lock.
            if self._is_in_place(fd):
                self._fd = fd
                return
            os.close(fd)

    def prove(self) -> None:
        """Makes sure that the lock is ours at this moment.

        Raises:
            SinkBusyError: Its file was removed, so that another job may hold the sink.
        """
        if not self.held:
            raise SinkBusyError(
                f"{self._what}: the folder {os.path.dirname(self._path)} was removed while this "
                "job was writing, so another job may be writing now. Run again"
            )

    def release(self) -> None:
        """Gives the lock back, and takes away its file and folder where nothing else is in it."""
        if self._fd is None:
            return
        with suppress(OSError):
            folder = os.path.dirname(self._path)
            if self.held and os.listdir(folder) == [os.path.basename(self._path)]:
                os.unlink(self._path)
                os.rmdir(folder)
        os.close(self._fd)
        self._fd = None

    def _is_in_place(self, fd: int) -> bool:
        try:
            return os.stat(self._path).st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            return False
