"""An output file that appears whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress

from sheaf_dagster.errors import SinkBusyError, SinkError, SourceError, SpecError
from sheaf_dagster.protocols import version_in
from sheaf_dagster.storage.compression import codec_of, compress
from sheaf_dagster.storage.joining import abort_uploads, join
from sheaf_dagster.storage.lease import Lease
from sheaf_dagster.storage.local_join import LocalJoin
from sheaf_dagster.storage.location import Location, describe, sink_errors
from sheaf_dagster.storage.options import scrub
from sheaf_dagster.storage.parts import Part, PartStore

__all__ = ["Sink"]

log = logging.getLogger(__name__)


class Sink:
    """Where a job's output goes, with the folder aside in which its parts gather.

    The folder is hidden beside the sink (``.<name>.sheaf``): on the same disk, so that the
    commit is a rename, and within reach of every worker that can reach the sink. It goes when
    the output is committed; after a kill it stays, for the rerun.
    """

    def __init__(self, location: Location) -> None:
        if version_in(location.uri):
            raise SpecError(
                f"{location.uri}: a version of an object can't be written; name the object without "
                "?versionId="
            )
        self.location = location
        self.aside = location.parent.child(f".{location.name}.sheaf")
        self._lock: int | None = None
        self._lease: Lease | None = None
        self._run: Location | None = None
        self._join: LocalJoin | None = None
        self.held = False

    def prepare(self) -> None:
        """Makes the folder aside and takes the sink for this job.

        Raises:
            SinkError: The place can't be written, or the sink is a directory.
            SinkBusyError: Another job is writing it: on this machine, or on any where the sink
                is in a remote store.
        """
        if self.location.is_local and os.path.isdir(self.location.uri):
            raise SinkError(f"{self.location.uri} is a directory; name a file")
        marker = self.aside.child("lock")
        if self.location.is_local:
            self._take_lock(marker)
        else:
            marker.make_parents()
            lease = Lease(marker, self.location.uri)
            with sink_errors(self.location):
                lease.take()
            self._lease = lease
        self.held = True

    def _take_lock(self, marker: Location) -> None:
        import fcntl

        while True:
            marker.make_parents()
            with sink_errors(self.location):
                try:
                    fd = os.open(marker.uri, os.O_RDWR | os.O_CREAT, 0o644)
                except FileNotFoundError:  # the last holder has just removed the folder
                    continue
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

    def release(self) -> None:
        """Gives the sink free; parts stay for a rerun. Does nothing where another job holds it."""
        self._let_go()
        if not self.held:
            return
        with suppress(Exception):  # unpacked copies are made anew by every run
            self.spool().remove_tree()
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
        if self._lease is not None:
            self._lease.release()
            self._lease = None

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
        self._let_go()
        store = self.parts(fingerprint)
        self._run = store.folder
        kept = ("lock", "source/", *([f"{store.folder.name}/"] if resume else []))
        with sink_errors(self.location):
            self.aside.remove_tree(keep=kept)
        store.folder.child("x").make_parents()
        with sink_errors(self.location):
            return store.existing() if resume else {}

    def discard(self) -> None:
        """Removes all that was kept aside, if this job holds the sink."""
        self._let_go()
        if not self.held:
            return
        # The lock is the last to go: whoever takes the sink next may have the same parts to write.
        self.aside.remove_tree(keep=("lock",))
        abort_uploads(self.aside)  # of large parts whose worker was killed
        if self.aside.has_folders:
            self.aside.remove_tree()

    def sweep(self) -> None:
        """Removes parts that came after ``discard``, from workers that had not yet heard of it.

        An object needs no folder to be put into; on a local disk the part would have none.
        Where another job holds the sink by now, it removes them.
        """
        if self._run is None or self.aside.is_local or self.held:
            return
        try:
            if not self._run.find_all() or "lock" in self.aside.list_names():
                return
            self.prepare()
            try:
                self._run.remove_tree()
            finally:
                self.release()
        except Exception as e:
            log.warning(
                "%s could not be removed: %s; the next job on this sink does it",
                self.aside.uri,
                scrub(describe(e), self.location.options),
            )

    def join_ahead(self, store: PartStore, parts: Sequence[Part]) -> None:
        """Joins parts on a local disk while others are still being made.

        So that the end of a large job isn't spent waiting for the disk. What is joined can't be
        seen at the sink, and ``commit`` begins anew where it isn't given these parts.

        Args:
            store: Where they lie.
            parts: Those that come next, in order.

        Raises:
            SinkError: They can't be joined; the disk may be full.
        """
        if not self.location.is_local:
            return  # a store joins by itself
        with sink_errors(self.location):
            if self._join is None:
                self._join = LocalJoin(store)
            self._join.extend(parts)

    def commit(self, store: PartStore, parts: Sequence[Part]) -> int:
        """Joins the parts in order and makes the sink appear; returns its size in bytes.

        Raises:
            SinkError: It could not be written; what was at the sink before is untouched.
        """
        with sink_errors(self.location):
            if self.location.is_local:
                self._commit_local(store, parts)
            else:
                self._require_lease()
                pieces = [(store.location(p), p.size) for p in parts]
                join(self.location, pieces, self._empty(), store.folder)
        size = sum(p.size for p in parts) or len(self._empty())
        self._check_committed(size)
        try:
            self.discard()
        except Exception as e:  # the output is there and whole: no reason to fail
            log.warning(
                "%s is committed, but %s could not be removed: %s; the next job on this sink "
                "removes it",
                self.location.uri,
                self.aside.uri,
                scrub(describe(e), self.location.options),
            )
        self._unlock()
        return size

    def _require_lease(self) -> None:
        try:
            if self._lease is not None:
                self._lease.check()
        except SinkBusyError:
            self._unlock()  # what lies aside is the other job's now
            raise

    def _check_committed(self, expected: int) -> None:
        try:
            state = self.location.state()
        except SourceError as e:
            # The store has confirmed the commit; that it can't be asked again changes nothing.
            log.warning("%s is committed, but could not be looked at: %s", self.location.uri, e)
            return
        if state is None or state.size != expected:
            raise SinkError(
                f"{self.location.uri} holds {state.size if state else 0} bytes after the commit, "
                f"expected {expected}; another job may be writing it. Run again"
            )

    def _empty(self) -> bytes:
        return compress(b"", codec_of(self.location.uri))

    def _commit_local(self, store: PartStore, parts: Sequence[Part]) -> None:
        join = self._join
        if join is None or join.parts != list(parts[: len(join.parts)]):
            self._let_go()  # a chunk was run again after its first part was joined
            join = self._join = LocalJoin(store)
        join.extend(parts[len(join.parts) :])
        size, expected = join.finish(self._empty()), sum(p.size for p in parts)
        self._join = None
        if size != (expected or len(self._empty())):
            raise SinkError(
                f"{self.location.uri} can't be written: its parts hold {size} bytes, expected "
                f"{expected}; another process has changed {store.folder.uri}. Run again"
            )
        os.replace(join.path, self.location.uri)
        _sync_folder(os.path.dirname(self.location.uri))

    def _let_go(self) -> None:
        if self._join is not None:
            self._join.close()
            self._join = None


def _sync_folder(path: str) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
