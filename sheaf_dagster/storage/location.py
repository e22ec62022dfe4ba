"""A file, wherever it lives: one small object that pickles to workers."""

from __future__ import annotations

import glob
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar, cast

from sheaf_dagster.errors import (
    MissingDependencyError,
    SheafError,
    SinkError,
    SourceError,
    SourceNotFoundError,
    SpecError,
)
from sheaf_dagster.protocols import S3_PROTOCOLS, options_for, package_for, version_in
from sheaf_dagster.storage.expiry import EXPIRED, expired, with_reason
from sheaf_dagster.storage.local import make_folder, read_at, remove_folder, sync_folder
from sheaf_dagster.storage.options import check_no_credentials, scrub
from sheaf_dagster.storage.reader import RangeReader
from sheaf_dagster.storage.retry import ShortReadError, is_transient, retried

__all__ = ["FileState", "Location"]

T = TypeVar("T")

_WITHOUT_FOLDERS = S3_PROTOCOLS | {"gs", "gcs", "az", "abfs", "abfss", "memory"}
"""Object stores. Making a folder there would at best do nothing, at worst make a bucket."""

_BETWEEN_QUESTIONS = 256
"""Files that are deleted between two proofs that they may be."""

_AT_A_TIME = 16
"""Requests under way where one file each has to be deleted."""


def _always() -> None:
    """It may."""


@dataclass(frozen=True)
class FileState:
    """What tells one version of a file from another, without reading it."""

    size: int
    version: str
    """ETag or version id where the store has one, else modification time and inode."""


@dataclass(frozen=True)
class Location:
    """A path or fsspec URI with the options that reach it.

    ``uri`` is absolute: a relative local path is resolved where the object is made, so that
    every worker means the same file.
    """

    uri: str
    options: dict[str, Any] = field(default_factory=dict, repr=False, hash=False, compare=False)

    @classmethod
    def of(cls, uri: str, options: dict[str, Any] | None = None) -> Location:
        """The location of a path or URI.

        Raises:
            SourceError: The protocol is unknown, or its file system refuses the options.
            SpecError: The URI carries credentials.
            MissingDependencyError: The package that speaks the protocol is not installed.
        """
        check_no_credentials(uri)
        protocol = _protocol(uri)
        if protocol in ("file", "local"):
            return cls(os.path.abspath(os.path.expanduser(_without_protocol(uri))), {})
        location = cls(uri, options_for(protocol, options))
        if version_in(uri):
            location.options.setdefault("version_aware", True)  # s3fs would leave the version out
        location.fs  # noqa: B018  (an unknown protocol is refused here, not on a worker)
        return location

    @property
    def is_local(self) -> bool:
        """Whether this is a path on this machine."""
        return "://" not in self.uri

    @property
    def fs(self) -> Any:
        """The fsspec file system (one instance a process and set of options)."""
        import fsspec

        protocol = _protocol(self.uri)
        options = dict(self.options)
        if config := options.get("config_kwargs"):
            # botocore writes into this dictionary: fsspec would no longer know the file system by
            # its options, and make another with connections of its own.
            options["config_kwargs"] = {**config, "retries": dict(config.get("retries") or {})}
        try:
            fs = fsspec.filesystem(protocol, **options)
        except ImportError as e:
            raise MissingDependencyError(
                f"{self.uri}: {protocol}:// needs a package: {package_for(protocol, e)}"
            ) from e
        except Exception as e:
            if "not known" in str(e):
                raise SourceError(f"{self.uri}: {e}; use a local path or an fsspec URI") from e
            raise self.error(
                SpecError, f"{self.uri}: {protocol}:// can't be used", e, "check storage_options"
            ) from self.cause(e)
        if protocol in S3_PROTOCOLS:
            fs.retries = 1  # botocore retries requests and we whole reads; a third layer multiplies
        return fs

    @property
    def is_s3(self) -> bool:
        """Whether S3's own requests can be made (``fs.call_s3``)."""
        return not self.is_local and _protocol(self.uri) in S3_PROTOCOLS

    @property
    def has_folders(self) -> bool:
        """Whether folders are to be made, and files show while they are written."""
        return self.is_local or _protocol(self.uri) not in _WITHOUT_FOLDERS

    def error(
        self, cls: type[SheafError], what: str, cause: BaseException, cure: str = ""
    ) -> SheafError:
        """An error in one line, with no secret of the options in it."""
        if expired(cause):
            error = cls(f"{what}: {EXPIRED}")
            error.retryable = True
            return error
        text = scrub(f"{what}: {describe(cause)}", self.options)
        error = cls(f"{text}; {cure}" if cure else text)
        if is_transient(cause) or getattr(cause, "retryable", False):
            error.retryable = True
        return error

    def cause(self, error: BaseException) -> BaseException | None:
        """The error as a cause to chain, or None where its text would tell a secret."""
        seen: BaseException | None = error
        while seen is not None:
            if scrub(str(seen), self.options) != str(seen):
                return None
            seen = seen.__cause__ or seen.__context__
        return error

    def remote(self, what: str, call: Callable[[], T]) -> T:
        """Makes a request of a remote store, again where it failed for a passing reason."""
        return retried(call, f"{self.uri}: {what}")

    @property
    def path(self) -> str:
        """The path inside the file system."""
        return self.uri if self.is_local else str(self.fs._strip_protocol(self.uri))

    @property
    def name(self) -> str:
        """Last component."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """The folder or prefix that holds it."""
        head = self.uri.rstrip("/").rsplit("/", 1)[0]
        return Location(head or "/", self.options)

    def child(self, name: str) -> Location:
        """A file below this folder or prefix."""
        return Location(f"{self.uri.rstrip('/')}/{name}", self.options)

    def is_same_file(self, other: Location) -> bool:
        """Whether both name one file: by another path, through a link, or by another protocol."""
        if self.is_local != other.is_local:
            return False
        if not self.is_local:
            both_s3 = self.is_s3 and other.is_s3
            same_store = both_s3 or type(self.fs) is type(other.fs)
            return same_store and self.path.rstrip("/") == other.path.rstrip("/")
        if os.path.realpath(self.uri) == os.path.realpath(other.uri):
            return True
        with suppress(OSError):
            return os.path.samefile(self.uri, other.uri)
        return False

    def state(self) -> FileState | None:
        """Size and version, or None where nothing is there.

        Raises:
            SourceError: There is something, but no readable file.
        """
        if self.is_local:
            try:
                st = os.stat(self.uri)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as e:
                raise SourceError(f"{self.uri}: {e.strerror}") from e
            if os.path.isdir(self.uri):
                raise SourceError(f"{self.uri} is a directory; name one JSONL file")
            if not stat.S_ISREG(st.st_mode):  # a pipe would keep us waiting, a device has no end
                raise SourceError(
                    f"{self.uri} is no regular file (a pipe or a device); name a file"
                )
            return FileState(st.st_size, f"{st.st_mtime_ns}:{st.st_ino}")
        fs = self.fs

        def look() -> dict[str, Any]:
            fs.invalidate_cache(self.parent.path)
            return cast("dict[str, Any]", fs.info(self.path))

        try:
            info = self.remote("info", look)
        except FileNotFoundError:
            return None
        except Exception as e:
            reason = with_reason(e, fs, self.path)
            raise self.error(SourceError, f"{self.uri} can't be read", reason) from self.cause(e)
        if info.get("type") == "directory":
            raise SourceError(f"{self.uri} is a directory; name one JSONL file")
        return state_of(info)

    def require_state(self) -> FileState:
        """Like ``state``, but raises SourceNotFoundError where nothing is there."""
        state = self.state()
        if state is None:
            raise SourceNotFoundError(
                f"{self.uri} does not exist; write it first (materialise the upstream asset), "
                "or correct the source location"
            )
        return state

    def open(self) -> IO[bytes]:
        """The stored bytes, from the start, unbuffered where that is faster."""
        if not self.is_local:
            return cast("IO[bytes]", RangeReader(self, self.require_state().size))
        try:
            return open(self.uri, "rb", buffering=0)
        except FileNotFoundError:
            raise SourceNotFoundError(f"{self.uri} does not exist") from None
        except Exception as e:
            raise SourceError(f"{self.uri} can't be opened: {describe(e)}") from e

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` (exclusive), all of them or an error.

        Raises:
            SourceError: Fewer bytes came than were asked for.
        """
        if start >= end:
            return b""
        try:
            if self.is_local:
                with open(self.uri, "rb", buffering=0) as f:
                    return self._whole(read_at(f, start, end - start), start, end)
            fs, path = self.fs, self.path
            return self.remote(
                "read", lambda: self._whole(fs.cat_file(path, start=start, end=end), start, end)
            )
        except FileNotFoundError:
            raise SourceNotFoundError(
                f"{self.uri} is not visible on this machine; put it on storage that every "
                "node sees, or it was deleted while the job ran"
            ) from None
        except ShortReadError as e:
            raise SourceError(f"{self.uri}: {e.strerror}") from None
        except Exception as e:
            raise self.error(SourceError, f"{self.uri} can't be read", e) from self.cause(e)

    def _whole(self, data: bytes, start: int, end: int) -> bytes:
        if len(data) != end - start:
            raise ShortReadError(
                f"bytes {start}–{end} gave {len(data)} of {end - start} bytes; the file changed "
                "or the read was cut short"
            )
        return data

    def read(self) -> bytes:
        """The whole file; for small ones."""
        if self.is_local:
            with open(self.uri, "rb") as f:
                return f.read()
        fs, path = self.fs, self.path
        return self.remote("read", lambda: cast("bytes", fs.cat_file(path)))

    def write(self, data: bytes, *, lasting: bool = False) -> None:
        """Replaces the file at once: readers see the old bytes or the new, never a mixture.

        Args:
            data: All of its bytes.
            lasting: On return they outlast a power loss, as those of a remote store always do.
        """
        if self.is_local:
            temporary = f"{self.uri}.{uuid.uuid4().hex}.tmp"
            try:
                # Buffered: a raw write may stop short, at 2 GiB or on a disk that fills up.
                with open(temporary, "wb") as f:
                    f.write(data)
                    if lasting:
                        f.flush()
                        os.fsync(f.fileno())
                os.replace(temporary, self.uri)
                if lasting:
                    sync_folder(os.path.dirname(self.uri))
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        else:
            fs, path = self.fs, self.path
            self.remote("write", lambda: fs.pipe_file(path, data))

    def make_parents(self) -> None:
        """Makes the folder that holds it, where the store has folders."""
        try:
            if self.is_local:
                make_folder(os.path.dirname(self.uri))
            elif self.has_folders:
                self.fs.makedirs(self.parent.path, exist_ok=True)
        except OSError as e:
            raise SinkError(
                f"{self.uri}: its folder can't be made: {e.strerror} ({e.filename}); "
                "check the path and its permissions"
            ) from e

    def list_names(self) -> dict[str, int]:
        """Names directly below this folder, each with its size; empty where there is none."""
        if self.is_local:
            try:
                with os.scandir(self.uri) as entries:
                    return {e.name: e.stat().st_size for e in entries if e.is_file()}
            except FileNotFoundError:
                return {}
        fs, path = self.fs, self.path

        def look() -> list[dict[str, Any]]:
            fs.invalidate_cache(path)
            return list(fs.ls(path, detail=True))

        try:
            found = self.remote("list", look)
        except FileNotFoundError:
            return {}
        return {
            str(f["name"]).rstrip("/").rsplit("/", 1)[-1]: int(f.get("size") or 0)
            for f in found
            if f.get("type") == "file"
        }

    def find_all(self) -> list[str]:
        """Paths of all files below this folder of a remote store."""
        fs, path = self.fs, self.path
        fs.invalidate_cache(path)
        return self.remote("list", lambda: list(fs.find(path)))

    def remove_tree(
        self, keep: tuple[str, ...] = (), allowed: Callable[[], None] = _always
    ) -> None:
        """Removes this folder and all below it; no error where there is nothing.

        Args:
            keep: What stays: starts of names below it; those of folders end in a slash.
            allowed: Asked before anything is removed, and again after every few hundred files;
                raises where it may not be.
        """
        if self.is_local:
            if os.path.exists(self.uri):
                allowed()
                remove_folder(self.uri, keep)
            return
        fs = self.fs

        def remove(found: str) -> None:
            # One by one and by exact name: fs.rm takes *, ? and [ in a name for a pattern, and
            # says nothing of files that a bulk request failed to delete.
            with suppress(FileNotFoundError):
                self.remote("delete", lambda: fs.rm_file(found))

        root = self.path.strip("/") + "/"

        def goes(name: str) -> bool:
            return not (keep and name.lstrip("/").removeprefix(root).startswith(keep))

        found = [name for name in self.find_all() if goes(name)]
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="sheaf-delete") as pool:
            for at in range(0, len(found), _BETWEEN_QUESTIONS):
                allowed()
                list(pool.map(remove, found[at : at + _BETWEEN_QUESTIONS]))
        if self.has_folders:
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
        if self.has_folders:
            with suppress(Exception):
                os.rmdir(self.uri) if self.is_local else self.fs.rmdir(self.path)


def state_of(info: dict[str, Any]) -> FileState:
    """The state of a file that an fsspec file system describes."""
    version = next(
        (str(info[k]) for k in ("ETag", "etag", "VersionId", "md5Hash") if info.get(k)), ""
    )
    return FileState(int(info.get("size") or 0), (version or str(modified_of(info))).strip('"'))


def modified_of(info: dict[str, Any]) -> Any:
    """When a file was last modified, in its file system's own type; empty where it doesn't say."""
    known = ("LastModified", "last_modified", "mtime", "updated", "created")
    return next((info[k] for k in known if info.get(k)), "")


@contextmanager
def sink_errors(location: Location) -> Iterator[None]:
    """Turns what a store says while a sink is written into one clear SinkError."""
    try:
        yield
    except SinkError:
        raise
    except Exception as e:
        raise location.error(
            SinkError, f"{location.uri} can't be written", e, "an existing file there is untouched"
        ) from location.cause(e)


def describe(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.rstrip(".")
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _protocol(uri: str) -> str:
    # fsspec would take what stands before a "::" in a path for a protocol.
    if "://" not in uri:
        return "file"
    from fsspec.utils import get_protocol

    return str(get_protocol(uri))


def _without_protocol(uri: str) -> str:
    if not uri.startswith(("file:", "local:")):
        return uri  # a plain path needs no fsspec, which takes a while to import
    from fsspec.implementations.local import LocalFileSystem

    return str(LocalFileSystem._strip_protocol(uri))
