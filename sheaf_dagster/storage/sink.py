"""An output file that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from sheaf_dagster.errors import SinkBusyError, SinkError
from sheaf_dagster.storage.compression import codec_of, compress
from sheaf_dagster.storage.location import Location, sink_errors
from sheaf_dagster.storage.parts import Part, PartStore

__all__ = ["Sink"]

_ONE_PUT_BYTES = 32 * 2**20
"""Outputs up to this size are written to an object store in a single, atomic request."""

_COPY_BYTES = 8 * 2**20


class Sink:
    """Where a job's output goes, with the folder aside in which its parts gather.

    The folder is hidden beside the sink (``.<name>.sheaf``): on the same disk, so that the
    commit is a rename, and within reach of every worker that can reach the sink. It goes when
    the output is committed; after a kill it stays, for the rerun.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.aside = location.parent.child(f".{location.name}.sheaf")
        self._lock: int | None = None
        self.held = False

    def prepare(self) -> None:
        """Makes the folder aside and takes the sink for this job.

        Raises:
            SinkError: The place can't be written, or the sink is a directory.
            SinkBusyError: Another job on this machine is writing it.
        """
        if self.location.is_local and os.path.isdir(self.location.uri):
            raise SinkError(f"{self.location.uri} is a directory; name a file")
        marker = self.aside.child("lock")
        marker.make_parents()
        if self.location.is_local:
            self._take_lock(marker)
        self.held = True

    def _take_lock(self, marker: Location) -> None:
        import fcntl

        while True:
            with sink_errors(self.location):
                fd = os.open(marker.uri, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise SinkBusyError(
                    f"{self.location.uri} is being written by another job; wait until it has "
                    "finished, or write to another sink"
                ) from None
            # The last holder may have removed the file between our open and our lock.
            try:
                same = os.stat(marker.uri).st_ino == os.fstat(fd).st_ino
            except FileNotFoundError:
                same = False
            if same:
                self._lock = fd
                return
            os.close(fd)
            marker.make_parents()

    def release(self) -> None:
        """Gives the sink free; parts stay for a rerun. Does nothing where another job holds it."""
        if not self.held:
            return
        if self.aside.is_local and set(self.aside.list_names()) <= {"lock"}:
            with suppress(OSError):
                if not any(e.is_dir() for e in os.scandir(self.aside.uri)):
                    os.unlink(self.aside.child("lock").uri)
                    os.rmdir(self.aside.uri)
        self._unlock()

    def _unlock(self) -> None:
        self.held = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def parts(self, fingerprint: str) -> PartStore:
        """The store of the parts of the job with this fingerprint."""
        return PartStore(self._run_folder(fingerprint), codec_of(self.location.uri))

    def spool(self) -> Location:
        """Folder for unpacked copies of compressed sources."""
        return self.aside.child("source")

    def _run_folder(self, fingerprint: str) -> Location:
        return self.aside.child(f"run-{fingerprint[:24]}")

    def open_run(self, fingerprint: str, *, resume: bool) -> dict[int, Part]:
        """Makes the job's part folder; returns the parts that a killed run left in it.

        Parts of other jobs on this sink are removed.
        """
        keep = f"run-{fingerprint[:24]}"
        if self.aside.is_local:
            with suppress(FileNotFoundError):
                for entry in os.scandir(self.aside.uri):
                    if entry.name.startswith("run-") and (entry.name != keep or not resume):
                        shutil.rmtree(entry.path, ignore_errors=True)
        elif not resume:
            self._run_folder(fingerprint).remove_tree()
        store = self.parts(fingerprint)
        store.folder.child("x").make_parents()
        return store.existing() if resume else {}

    def discard(self) -> None:
        """Removes all that was kept aside, if this job holds the sink."""
        if self.held:
            self.aside.remove_tree()

    def commit(self, store: PartStore, parts: Sequence[Part]) -> int:
        """Joins the parts in order and makes the sink appear; returns its size in bytes.

        Raises:
            SinkError: It could not be written; what was at the sink before is untouched.
        """
        with sink_errors(self.location):
            if self.location.is_local:
                self._commit_local(store, parts)
            else:
                self._commit_remote(store, parts)
        state = self.location.state()
        expected = sum(p.size for p in parts) or len(self._empty())
        if state is None or state.size != expected:
            raise SinkError(
                f"{self.location.uri} holds {state.size if state else 0} bytes after the commit, "
                f"expected {expected}; another job may be writing it. Run again"
            )
        self.release_and_discard()
        return state.size

    def release_and_discard(self) -> None:
        """Removes what was kept aside, then gives the sink free."""
        self.discard()
        self._unlock()

    def _empty(self) -> bytes:
        return compress(b"", codec_of(self.location.uri))

    def _commit_local(self, store: PartStore, parts: Sequence[Part]) -> None:
        joined = store.folder.child("joined.tmp").uri
        with open(joined, "wb", buffering=0) as target:
            if not parts:
                target.write(self._empty())
            for part in parts:
                with open(store.location(part).uri, "rb", buffering=0) as piece:
                    _append(piece, target, part.size)
            os.fsync(target.fileno())
        os.replace(joined, self.location.uri)
        _sync_folder(os.path.dirname(self.location.uri))

    def _commit_remote(self, store: PartStore, parts: Sequence[Part]) -> None:
        fs, path = self.location.fs, self.location.path
        if sum(p.size for p in parts) <= _ONE_PUT_BYTES:
            pieces = [store.location(p).read() for p in parts]
            fs.pipe_file(path, b"".join(pieces) or self._empty())
            return
        # Object stores show the object when the multipart upload is completed, at close.
        target = fs.open(path, "wb", block_size=_ONE_PUT_BYTES)
        try:
            for part in parts:
                target.write(store.location(part).read())
        except BaseException:
            _discard_upload(target)
            raise
        target.close()


def _append(piece: IO[bytes], target: IO[bytes], size: int) -> None:
    left = size
    # The kernel copies, or shares the blocks where the file system can.
    while left and hasattr(os, "copy_file_range"):
        try:
            n = os.copy_file_range(piece.fileno(), target.fileno(), left)
        except OSError as e:
            import errno

            if e.errno in (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                break
            raise
        if n == 0:
            break
        left -= n
    if left:
        shutil.copyfileobj(piece, target, _COPY_BYTES)


def _sync_folder(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _discard_upload(target: object) -> None:
    # Leaving the file object open, or closing it, could complete the upload.
    discard = getattr(target, "discard", None) or getattr(target, "abort", None)
    with suppress(Exception):
        if discard is not None:
            discard()
        target.closed = True  # type: ignore[attr-defined]
