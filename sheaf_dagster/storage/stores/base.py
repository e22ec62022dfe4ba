"""What can be done with a file or a folder, wherever it lives."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, Protocol

from sheaf_dagster.errors import SinkError, SourceError, SourceNotFoundError
from sheaf_dagster.storage.checksum import checksum_of, is_md5
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.retry import ShortReadError

__all__ = ["FileState", "FoundFile", "Join", "Lasting", "Lock", "Store", "StoredPart"]

log = logging.getLogger(__name__)

Lasting = Literal["bytes", "name"]
"""How much of a file is on the disk: its bytes, or its name, too."""

_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class FileState:
    """What tells one version of a file from another, without reading it."""

    size: int
    version: str
    """ETag or version id where the store has one, else modification time and inode."""


@dataclass(frozen=True)
class FoundFile:
    """A file of a listing.

    Attributes:
        name: Path below the listed folder, with ``/``.
        state: Size and version. A local file's version is its modification time alone: an inode,
            which says more within one job, is another one on some network file systems after each
            mount.
        modified: Seconds since the epoch; None where the store doesn't say.
    """

    name: str
    state: FileState
    modified: float | None


def always() -> None:
    """It may."""


def whole(data: bytes, start: int, end: int) -> bytes:
    """The bytes of a range, or ShortReadError where some are missing."""
    if len(data) != end - start:
        raise ShortReadError(
            f"bytes {start}–{end} gave {len(data)} of {end - start} bytes; the file changed "
            "or the read was cut short"
        )
    return data


class Lock(Protocol):
    """One job at a time on a sink."""

    @property
    def held(self) -> bool:
        """Whether it is ours, as far as we have heard."""

    def take(self) -> None:
        """Takes it, or raises SinkBusyError where a running job holds it."""

    def prove(self) -> None:
        """Raises SinkBusyError where it isn't ours at this moment."""

    def release(self) -> None:
        """Gives it back, if it is ours."""


class Store(ABC):
    """A file or folder at a location, with what its store can do with it.

    Made where it is needed, by ``store_at(location)``; what is kept and sent is the location.
    """

    far = True
    """Whether a request takes so long that it pays to have the next one under way meanwhile."""
    known_elsewhere = True
    """Whether another process of this machine finds the same here."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.uri = location.uri

    @property
    @abstractmethod
    def path(self) -> str:
        """The path inside the file system."""

    @property
    def local_path(self) -> str | None:
        """The path on this machine, for libraries that read nothing else; None elsewhere."""
        return None

    @property
    def filesystem(self) -> Any | None:
        """The fsspec file system, for libraries that take one; None on this machine."""
        return None

    @property
    @abstractmethod
    def shows_unfinished(self) -> bool:
        """Whether files show while they are written, as they do where there are folders."""

    @abstractmethod
    def is_same_file(self, other: Store) -> bool:
        """Whether both name one file: by another path, through a link, or by another protocol."""

    @abstractmethod
    def state(self) -> FileState | None:
        """Size and version, or None where nothing is there.

        Raises:
            SourceError: There is something, but no readable file.
        """

    def require_state(self) -> FileState:
        """Like ``state``, but raises SourceNotFoundError where nothing is there."""
        state = self.state()
        if state is None:
            raise SourceNotFoundError(
                f"{self.uri} does not exist; write it first (materialise the upstream asset), "
                "or correct the source location"
            )
        return state

    def require_writable(self) -> None:
        """Raises SinkError where something is there that can't be a sink."""
        return  # what is at an object's name is replaced

    @abstractmethod
    def open(self) -> IO[bytes]:
        """The stored bytes, from the start, unbuffered where that is faster."""

    @abstractmethod
    def create(self) -> IO[bytes]:
        """Opens the file for writing, from the start; it may show before it is whole."""

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` (exclusive), all of them or an error.

        Raises:
            SourceError: Fewer bytes came than were asked for.
        """
        if start >= end:
            return b""
        try:
            return self._read_range(start, end)
        except FileNotFoundError:
            raise SourceNotFoundError(
                f"{self.uri} is not visible on this machine. Put it on storage that every machine "
                "sees. If it was deleted while the job ran, put it back and run again"
            ) from None
        except ShortReadError as e:
            raise SourceError(f"{self.uri}: {e.strerror}") from None
        except Exception as e:
            location = self.location
            raise location.error(SourceError, f"{self.uri} can't be read", e) from location.cause(e)

    @abstractmethod
    def _read_range(self, start: int, end: int) -> bytes: ...

    @abstractmethod
    def read(self) -> bytes:
        """The whole file; for small ones."""

    @abstractmethod
    def write(self, data: bytes, *, lasting: Lasting | None = None) -> None:
        """Replaces the file at once: readers see the old bytes or the new, never a mixture.

        Args:
            data: All of its bytes.
            lasting: What of it outlasts a power loss on return; of a remote store all does. Its
                bytes alone cost half: then its name may be lost for some seconds more.
        """

    @abstractmethod
    def remove(self) -> None:
        """Removes the file; no error where there is none."""

    def make_parents(self) -> None:
        """Makes the folder that holds it, where the store has folders.

        Raises:
            SinkError: It can't be made.
        """
        try:
            self._make_parents()
        except OSError as e:
            raise SinkError(
                f"{self.uri}: its folder can't be made: {e.strerror} ({e.filename}); "
                "check the path and its permissions"
            ) from e

    @abstractmethod
    def _make_parents(self) -> None: ...

    @abstractmethod
    def list_files(self, depth: int) -> list[FoundFile]:
        """All files down to ``depth`` levels below this folder; none where there is no folder.

        Hidden ones, whose names begin with a dot, are left out, and so is what lies in hidden
        folders.

        Raises:
            SourceError: The folder can't be listed, or its bucket doesn't exist.
        """

    @abstractmethod
    def remove_tree(self, keep: tuple[str, ...] = (), allowed: Callable[[], None] = always) -> None:
        """Removes this folder and all below it; no error where there is nothing.

        Args:
            keep: What stays: starts of names below it; those of folders end in a slash.
            allowed: Asked before anything is removed, and on remote stores again after every few
                hundred files; raises where it may not be.
        """

    @abstractmethod
    def remove_if_empty(self) -> None:
        """Removes this folder, where the store has folders and nothing is in it."""

    @abstractmethod
    def lock(self, what: str) -> Lock:
        """The lock that this file is.

        Args:
            what: Names what it locks in messages.
        """

    @abstractmethod
    def join(self, unseen: Location) -> Join:
        """This file as one that is put together from parts.

        Args:
            unseen: Where it may grow, in the same store, where it must not show before it is whole.
        """

    def abort_uploads(self, prove: Callable[[], None]) -> None:
        """Aborts uploads below this folder that were begun and never completed.

        Args:
            prove: Raises where another job may have begun them; asked before they are aborted.
        """
        return  # most stores begin none that outlive their process

    def checksum(self, data: bytes) -> str:
        """The checksum by which this store's parts are known again."""
        return checksum_of([data], md5=False)

    def vouches_for(self, version: str, checksum: str) -> bool:
        """Whether the version that the store tells of a file proves its checksum, unread."""
        return False


class StoredPart:
    """The bytes of a part, where they lie.

    Attributes:
        store: The part's file.
        size: Its bytes.
        checksum: Of them, when they were written.
    """

    def __init__(self, store: Store, size: int, checksum: str) -> None:
        self.store = store
        self.size = size
        self.checksum = checksum

    def read(self) -> bytes:
        """All of them.

        Raises:
            SinkError: They were damaged since they were written.
        """
        data = self.store.read_range(0, self.size)
        if self._checksum_of([data]) != self.checksum:
            raise SinkError(
                f"{self.store.uri} was damaged since it was written. Run again: its rows are "
                "computed again, and the other parts are kept"
            )
        return data

    def is_whole(self, version: str) -> bool:
        """Whether they are those that were written.

        Args:
            version: What the store calls this version of the file.
        """
        if self.store.vouches_for(version, self.checksum):
            return True
        cuts = range(0, self.size, _BLOCK_BYTES)
        blocks = (self.store.read_range(a, min(a + _BLOCK_BYTES, self.size)) for a in cuts)
        if self._checksum_of(blocks) == self.checksum:
            return True
        log.warning("%s is damaged; its rows are computed again", self.store.uri)
        return False

    def _checksum_of(self, blocks: Iterable[bytes]) -> str:
        return checksum_of(blocks, md5=is_md5(self.checksum))


class Join(ABC):
    """A file that is put together from parts and appears when it is whole, or not at all."""

    def ahead(self, parts: Sequence[StoredPart]) -> None:
        """Joins the parts that come next while others are still being made, where that pays."""
        return  # a store joins by itself, at the end

    @abstractmethod
    def commit(self, parts: Sequence[StoredPart], empty: bytes, prove: Callable[[], None]) -> int:
        """Makes the file of all parts, in order; returns its size in bytes.

        Args:
            parts: All of them, those that were joined ahead too. Where these aren't the first,
                the file is begun anew.
            empty: What a file without parts holds.
            prove: Raises where the file may no longer be written; asked last before it shows.
        """

    def close(self) -> None:
        """Lets go of what was joined ahead."""
        return
