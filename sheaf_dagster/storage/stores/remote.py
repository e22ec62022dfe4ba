"""Files and folders of any store that fsspec reaches."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import IO, Any, TypeVar, cast

from sheaf_dagster.errors import SourceError
from sheaf_dagster.protocols import AZURE_PROTOCOLS, GCS_PROTOCOLS, S3_PROTOCOLS
from sheaf_dagster.storage.expiry import with_reason
from sheaf_dagster.storage.filesystem import filesystem_of
from sheaf_dagster.storage.lease import Lease
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.marker import Marker, Stored
from sheaf_dagster.storage.retry import retried
from sheaf_dagster.storage.stores.base import (
    FileState,
    FoundFile,
    Join,
    Lasting,
    Lock,
    Store,
    StoredPart,
    always,
    whole,
)
from sheaf_dagster.storage.stores.infos import files_of, state_of
from sheaf_dagster.storage.stores.range_reader import RangeReader

__all__ = ["PlainMarker", "RemoteJoin", "RemoteStore"]

T = TypeVar("T")

ONE_PUT_BYTES = 32 * 2**20
"""Outputs up to this size, of parts too small to be copied, are written in one request."""

_WITHOUT_FOLDERS = S3_PROTOCOLS | GCS_PROTOCOLS | AZURE_PROTOCOLS | {"memory"}
"""Object stores. Making a folder there would at best do nothing, at worst make a bucket."""

_WRAPPED = frozenset({"target_protocol", "fs", "fo"})
"""Options of file systems that are over another one."""

_BETWEEN_QUESTIONS = 256
"""Files that are deleted between two proofs that they may be."""

_DELETED_AT_A_TIME = 16
"""Requests under way where one file each has to be deleted."""

_READ_AT_A_TIME = 8


class RemoteStore(Store):
    """A file or folder of a store that fsspec reaches.

    Each request is made again where it failed for a reason that passes.
    """

    @cached_property
    def known_elsewhere(self) -> bool:  # type: ignore[override]
        """Whether it is of an implementation that fsspec has, and not in this process's memory."""
        from fsspec.registry import known_implementations, registry

        protocol = self.location.protocol
        known = known_implementations.get(protocol)
        wraps = "::" in self.uri or not _WRAPPED.isdisjoint(self.location.options)
        if known is None or protocol == "memory" or wraps:
            return False
        used = registry.get(protocol)
        package, _, name = str(known["class"]).rpartition(".")
        return used is None or (
            used.__qualname__ == name and used.__module__.split(".")[0] == package.split(".")[0]
        )

    @cached_property
    def fs(self) -> Any:
        """The fsspec file system."""
        return filesystem_of(self.uri, self.location.options)

    @property
    def filesystem(self) -> Any:
        """The same."""
        return self.fs

    @cached_property
    def path(self) -> str:
        """The path inside the file system."""
        return str(self.fs._strip_protocol(self.uri))

    @property
    def _parent(self) -> str:
        return str(self.fs._strip_protocol(self.location.parent.uri))

    @property
    def shows_unfinished(self) -> bool:
        """Whether it has folders: sftp, hdfs, smb and others, where files show while written."""
        return self.location.protocol not in _WITHOUT_FOLDERS

    def request(self, what: str, call: Callable[[], T]) -> T:
        """Makes a request, again where it failed for a passing reason."""
        return retried(call, f"{self.uri}: {what}")

    def is_same_file(self, other: Store) -> bool:
        """Whether both have one path in file systems of one kind."""
        return (
            isinstance(other, RemoteStore)
            and type(self.fs) is type(other.fs)
            and self.path.rstrip("/") == other.path.rstrip("/")
        )

    def state(self) -> FileState | None:
        """Size and version, or None where nothing is there."""

        def look() -> dict[str, Any]:
            self.fs.invalidate_cache(self._parent)
            return cast("dict[str, Any]", self.fs.info(self.path))

        try:
            info = self.request("info", look)
        except FileNotFoundError:
            return None
        except Exception as e:
            reason = with_reason(e, self.fs, self.path)
            raise self.location.error(
                SourceError, f"{self.uri} can't be read", reason
            ) from self.location.cause(e)
        if info.get("type") == "directory":
            raise SourceError(f"{self.uri} is a directory; name a file")
        return state_of(info)

    def open(self) -> IO[bytes]:
        """The stored bytes, in ranged requests."""
        return cast("IO[bytes]", RangeReader(self.read_range, self.require_state().size))

    def create(self) -> IO[bytes]:
        """Opens the file for writing."""
        return cast("IO[bytes]", self.fs.open(self.path, "wb"))

    def _read_range(self, start: int, end: int) -> bytes:
        return self.request(
            "read", lambda: whole(self.fs.cat_file(self.path, start=start, end=end), start, end)
        )

    def read(self) -> bytes:
        """The whole file."""
        return self.request("read", lambda: cast("bytes", self.fs.cat_file(self.path)))

    def write(self, data: bytes, *, lasting: Lasting | None = None) -> None:
        """Replaces the file at once."""
        self.request("write", lambda: self.fs.pipe_file(self.path, data))

    def remove(self) -> None:
        """Removes the file; no error where there is none."""
        self._remove(self.path)

    def _remove(self, path: str) -> None:
        # By exact name: fs.rm takes *, ? and [ in a name for a pattern, and says nothing of files
        # that a bulk request failed to delete.
        with suppress(FileNotFoundError):
            self.request("delete", lambda: self.fs.rm_file(path))

    def _make_parents(self) -> None:
        if self.shows_unfinished:
            self.fs.makedirs(self._parent, exist_ok=True)

    def list_files(self, depth: int) -> list[FoundFile]:
        """All files down to ``depth`` levels below this folder, but hidden ones."""

        def look() -> list[dict[str, Any]]:
            self.fs.invalidate_cache(self.path)
            if depth == 1:
                return list(self.fs.ls(self.path, detail=True))
            return list(self.fs.find(self.path, detail=True).values())

        try:
            infos = self.request("list", look)
        except FileNotFoundError as e:
            if "bucket does not exist" in str(e):  # S3's words for NoSuchBucket
                raise SourceError(f"{self.uri}: there is no such bucket; check the name") from None
            return []
        except Exception as e:
            raise self.location.error(
                SourceError, f"{self.uri} can't be listed", e
            ) from self.location.cause(e)
        return list(files_of(infos, self.path, depth))

    def remove_tree(self, keep: tuple[str, ...] = (), allowed: Callable[[], None] = always) -> None:
        """Removes this folder and all below it, but what is to stay."""
        root = self.path.strip("/") + "/"

        def goes(name: str) -> bool:
            return not (keep and name.lstrip("/").removeprefix(root).startswith(keep))

        self.fs.invalidate_cache(self.path)
        found = self.request("list", lambda: list(self.fs.find(self.path)))
        found = [name for name in found if goes(name)]
        with ThreadPoolExecutor(_DELETED_AT_A_TIME, thread_name_prefix="sheaf-delete") as pool:
            for at in range(0, len(found), _BETWEEN_QUESTIONS):
                allowed()
                list(pool.map(self._remove, found[at : at + _BETWEEN_QUESTIONS]))
        if self.shows_unfinished:
            self._remove_folders(goes, keep)

    def _remove_folders(self, goes: Callable[[str], bool], keep: tuple[str, ...]) -> None:
        with suppress(FileNotFoundError):
            for entry in self.fs.ls(self.path, detail=True):
                if entry["type"] == "directory" and goes(f"{entry['name']}/"):
                    self.fs.rm(glob.escape(entry["name"]), recursive=True)
            if not keep:
                self.fs.rmdir(self.path)

    def remove_if_empty(self) -> None:
        """Removes this folder, where the store has folders and nothing is in it."""
        if self.shows_unfinished:
            with suppress(Exception):
                self.fs.rmdir(self.path)

    def marker(self) -> Marker:
        """This file as one that is changed by compare-and-swap, by the surest means there are."""
        return PlainMarker(self)

    def lock(self, what: str) -> Lock:
        """A lock that its holder renews: there are none that end with their process."""
        return Lease(self.marker(), what)

    def join(self, unseen: Location) -> Join:
        """A file that is put together in this process."""
        return RemoteJoin(self, RemoteStore(unseen))


class RemoteJoin(Join):
    """A file of a store that can't put parts together by itself: their bytes pass through here."""

    def __init__(self, target: RemoteStore, unseen: RemoteStore) -> None:
        self._target = target
        self._unseen = unseen

    def commit(self, parts: Sequence[StoredPart], empty: bytes, prove: Callable[[], None]) -> int:
        """Writes the parts, in order, as one file that appears when it is whole."""
        target = self._target
        if target.shows_unfinished:
            _stream(self._unseen, parts, empty, prove)
            target.fs.mv(self._unseen.path, target.path)
        elif sum(p.size for p in parts) <= ONE_PUT_BYTES:
            data = fetch_all(parts) or empty
            prove()
            target.write(data)
        else:
            _stream(target, parts, b"", prove)
        return sum(p.size for p in parts) or len(empty)


def fetch_all(parts: Sequence[StoredPart]) -> bytes:
    """The bytes of all parts, in order."""
    with ThreadPoolExecutor(_READ_AT_A_TIME, thread_name_prefix="sheaf-join") as pool:
        return b"".join(pool.map(StoredPart.read, parts))


def _stream(
    target: RemoteStore,
    parts: Sequence[StoredPart],
    empty: bytes,
    prove: Callable[[], None],
) -> None:
    # Object stores show the object when the upload is completed, at close.
    file = target.fs.open(target.path, "wb", block_size=ONE_PUT_BYTES)
    try:
        if not parts:
            file.write(empty)
        for part in parts:
            file.write(part.read())
        prove()
        file.close()
    except BaseException:
        # Left open, or closed by the garbage collector, it could still be completed.
        discard = getattr(file, "discard", None) or getattr(file, "abort", None)
        with suppress(Exception):
            if discard is not None:
                discard()
        with suppress(Exception):
            file.closed = True
        raise


class PlainMarker(Marker):
    """An object of a store that doesn't compare: it is looked at before it is written."""

    exact = False

    def __init__(self, store: RemoteStore) -> None:
        self._at = store

    def read(self) -> Stored | None:
        """What is there, if anything."""
        try:
            content = self._at.read()
        except FileNotFoundError:
            return None
        return Stored(content, hashlib.sha256(content).hexdigest())

    def create(self, content: bytes) -> str | None:
        """Makes the object where the store sees that there is none, as most do."""
        fs, path = self._at.fs, self._at.path
        try:
            self._at.request("create", lambda: fs.pipe_file(path, content, mode="create"))
        except FileExistsError:
            return None
        return hashlib.sha256(content).hexdigest()

    def replace(self, content: bytes, version: str, timeout: float | None = None) -> str | None:
        """Writes over a version, if it is there when looked at."""
        found = self.read()
        if found is None or found.version != version:
            return None
        self._at.write(content)
        return hashlib.sha256(content).hexdigest()

    def remove(self, version: str) -> None:
        """Deletes this version, if it is there when looked at: again before each try."""

        def remove() -> None:
            found = self.read()
            if found is not None and found.version == version:
                with suppress(FileNotFoundError):
                    self._at.fs.rm_file(self._at.path)

        self._at.request("delete", remove)
