"""Files and folders of this machine."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO

from sheaf_dagster.errors import SinkError, SourceError, SourceNotFoundError
from sheaf_dagster.storage.failures import describe
from sheaf_dagster.storage.file_lock import FileLock
from sheaf_dagster.storage.folders import make_folder, read_at, remove_folder, sync_folder
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores.base import (
    FileState,
    FoundFile,
    Join,
    Lasting,
    Lock,
    Store,
    always,
    whole,
)
from sheaf_dagster.storage.stores.local_join import LocalJoin

__all__ = ["LocalStore"]


class LocalStore(Store):
    """A file or folder of this machine, or of a disk that is mounted here."""

    far = False
    shows_unfinished = True

    @property
    def path(self) -> str:
        """The absolute path."""
        return self.uri

    @property
    def local_path(self) -> str:
        """The same."""
        return self.uri

    def is_same_file(self, other: Store) -> bool:
        """Whether both name one file, by another path or through a link."""
        if other.local_path is None:
            return False
        if os.path.realpath(self.uri) == os.path.realpath(other.local_path):
            return True
        with suppress(OSError):
            return os.path.samefile(self.uri, other.local_path)
        return False

    def state(self) -> FileState | None:
        """Size, and modification time with inode; None where nothing is there."""
        try:
            st = os.stat(self.uri)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise SourceError(f"{self.uri}: {e.strerror}") from e
        if stat.S_ISDIR(st.st_mode):
            raise SourceError(f"{self.uri} is a directory; name a file")
        if not stat.S_ISREG(st.st_mode):  # a pipe would keep us waiting, a device has no end
            raise SourceError(f"{self.uri} is not a regular file (a pipe or a device); name a file")
        return FileState(st.st_size, f"{st.st_mtime_ns}:{st.st_ino}")

    def require_writable(self) -> None:
        """Raises SinkError where there is a directory."""
        if os.path.isdir(self.uri):
            raise SinkError(f"{self.uri} is a directory; name a file")

    def open(self) -> IO[bytes]:
        """The stored bytes, unbuffered."""
        try:
            return open(self.uri, "rb", buffering=0)
        except FileNotFoundError:
            raise SourceNotFoundError(f"{self.uri} does not exist") from None
        except Exception as e:
            raise SourceError(f"{self.uri} can't be opened: {describe(e)}") from e

    def create(self) -> IO[bytes]:
        """Opens the file for writing; it shows at once."""
        return open(self.uri, "wb")

    def _read_range(self, start: int, end: int) -> bytes:
        with open(self.uri, "rb", buffering=0) as f:
            return whole(read_at(f, start, end - start), start, end)

    def read(self) -> bytes:
        """The whole file."""
        with open(self.uri, "rb") as f:
            return f.read()

    def write(self, data: bytes, *, lasting: Lasting | None = None) -> None:
        """Replaces the file at once, by a rename."""
        temporary = f"{self.uri}.{uuid.uuid4().hex}.tmp"
        try:
            # Buffered: a raw write may stop short, at 2 GiB or on a disk that fills up.
            with open(temporary, "wb") as f:
                f.write(data)
                if lasting:
                    f.flush()
                    os.fsync(f.fileno())
            os.replace(temporary, self.uri)
            if lasting == "name":
                sync_folder(os.path.dirname(self.uri))
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def remove(self) -> None:
        """Removes the file; no error where there is none."""
        with suppress(FileNotFoundError):
            os.unlink(self.uri)

    def _make_parents(self) -> None:
        make_folder(os.path.dirname(self.uri))

    def list_files(self, depth: int) -> list[FoundFile]:
        """All files down to ``depth`` levels below this folder, but hidden ones."""
        try:
            return list(_walk(self.uri, "", depth))
        except OSError as e:
            raise SourceError(f"{self.uri} can't be listed: {e.strerror}; check it") from e

    def remove_tree(self, keep: tuple[str, ...] = (), allowed: Callable[[], None] = always) -> None:
        """Removes this folder and all below it, but what is to stay."""
        if os.path.exists(self.uri):
            allowed()
            remove_folder(self.uri, keep)

    def remove_if_empty(self) -> None:
        """Removes this folder, where nothing is in it."""
        with suppress(OSError):
            os.rmdir(self.uri)

    def lock(self, what: str) -> Lock:
        """A lock of the operating system, which ends with its process."""
        return FileLock(self.uri, what)

    def join(self, unseen: Location) -> Join:
        """A file that grows at ``unseen`` while parts are made, and is renamed at the end."""
        return LocalJoin(self.uri, unseen.uri)


def _walk(folder: str, prefix: str, depth: int) -> Iterator[FoundFile]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if depth > 1:
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", depth - 1)
                continue
            try:
                st = entry.stat()
            except FileNotFoundError:  # renamed or deleted while we look
                continue
            state = FileState(st.st_size, str(st.st_mtime_ns))
            yield FoundFile(prefix + entry.name, state, st.st_mtime)
