"""An output file that appears whole or not at all."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from sheaf_dagster.errors import SinkError, SourceError, SpecError
from sheaf_dagster.protocols import version_in
from sheaf_dagster.storage.failures import describe
from sheaf_dagster.storage.formats import Format, format_of
from sheaf_dagster.storage.location import Location, sink_errors
from sheaf_dagster.storage.options import scrub
from sheaf_dagster.storage.parts import Part, PartStore
from sheaf_dagster.storage.stores import Join, Lock, store_at

__all__ = ["HeldSink", "Sink"]

log = logging.getLogger(__name__)


class Sink:
    """Where a job's output goes, with the folder aside in which its parts gather.

    The folder is hidden beside the sink (``.<name>.sheaf``): on the same disk, so that the
    commit is a rename, and within reach of every worker that can reach the sink. It goes when
    the output is committed; after a kill it stays, for the rerun.

    To write it is to hold it::

        with Sink(location).hold() as held:
            done = held.open_run(fingerprint, resume=True)
            …                                  # held.store.write, held.join_ahead
            held.commit(parts)                 # or held.discard()
    """

    def __init__(self, location: Location, format: Format | None = None) -> None:
        if version_in(location.uri):
            raise SpecError(
                f"{location.uri}: a version of an object can't be written; name the object without "
                "?versionId="
            )
        self.location = location
        self.format = format_of(location.uri) if format is None else format
        self.aside = location.parent.child(f".{location.name}.sheaf")

    def hold(self) -> HeldSink:
        """Makes the folder aside and takes the sink for this job.

        Raises:
            SinkError: The place can't be written, or the sink is a directory.
            SinkBusyError: Another job is writing it: on this machine, or on any where the sink
                is in a remote store.
        """
        store_at(self.location).require_writable()
        marker = store_at(self.aside.child("lock"))
        marker.make_parents()
        lock = marker.lock(self.location.uri)
        with sink_errors(self.location):
            lock.take()
        return HeldSink(self, lock)

    def parts(self, fingerprint: str) -> PartStore:
        """The store of the parts of the job with this fingerprint."""
        folder = self.aside.child(f"run-{fingerprint[:24]}")
        return PartStore(folder, self.format)

    def sweep(self, fingerprint: str) -> None:
        """Removes parts that came after ``discard``, from workers that had not yet heard of it.

        An object needs no folder to be put into; on a local disk the part would have none.
        Where another job holds the sink by now, it removes them.
        """
        folder = self.parts(fingerprint).folder
        try:
            lock = self.aside.child("lock")
            if not store_at(folder).list_files(depth=1) or store_at(lock).state() is not None:
                return
            with self.hold() as held:
                held.remove(folder)
        except Exception as e:
            self.say_left(e)

    def say_left(self, error: Exception, but: str = "") -> None:
        """Logs that something aside could not be removed."""
        log.warning(
            "%s%s could not be removed: %s; the next job on this sink removes it",
            but,
            self.aside.uri,
            scrub(describe(error), self.location.options),
        )


class HeldSink:
    """A sink that this job holds: who holds none can neither write nor remove anything.

    Each step that destroys is preceded by a proof that the sink is still held. Where it isn't, the
    step raises ``SinkBusyError`` and leaves everything to the job that holds it now. ``commit``,
    ``discard`` and ``release`` end the hold; after that they do nothing, and so does the end of
    the ``with`` block, which is a ``release``.

    Attributes:
        store: Where the parts of this job lie, once ``open_run`` has made the place.
    """

    def __init__(self, sink: Sink, lock: Lock) -> None:
        self.sink = sink
        self._lock = lock
        self._join: Join | None = None
        self._source = sink.aside.child(f"source-{uuid.uuid4().hex[:12]}")
        # A name for each hold: who has lost the sink unheard writes into nobody else's file.
        self._growing = sink.aside.child(f"joined-{uuid.uuid4().hex[:12]}.tmp")
        self._pieces = sink.aside.child(f"pieces-{uuid.uuid4().hex[:12]}")
        self._scratch: list[Location] = []
        """Folders of what every run makes anew."""
        self._store: PartStore | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether the sink is held, as far as this process has heard."""
        return self._lock.held

    @property
    def store(self) -> PartStore:
        """Where this job's parts lie."""
        assert self._store is not None, "open_run comes first"
        return self._store

    def spool(self) -> Location:
        """Folder for unpacked copies of compressed sources; another one for each hold."""
        self._scratch.append(self._source)
        return self._source

    def open_run(self, fingerprint: str, *, resume: bool) -> dict[int, Part]:
        """Makes the job's part folder; returns the parts that a killed run left in it.

        Parts of other jobs on this sink are removed.
        """
        self._let_go()
        store = self._store = self.sink.parts(fingerprint)
        kept = ("lock", f"{self._source.name}/", *([f"{store.folder.name}/"] if resume else []))
        with sink_errors(self.sink.location):
            self.remove(self.sink.aside, keep=kept)
        store_at(store.folder.child("x")).make_parents()
        with sink_errors(self.sink.location):
            return store.existing() if resume else {}

    def join_ahead(self, parts: Sequence[Part]) -> None:
        """Joins parts while others are still being made, where the store doesn't by itself.

        So that the end of a large job isn't spent waiting for the disk. What is joined can't be
        seen at the sink, and ``commit`` begins anew where it isn't given these parts.

        Args:
            parts: Those that come next, in order.

        Raises:
            SinkError: They can't be joined; the disk may be full.
        """
        with sink_errors(self.sink.location):
            self._joined().ahead([self.store.stored(p) for p in parts])

    def commit(self, parts: Sequence[Part]) -> int:
        """Joins the parts in order and makes the sink appear; returns its size in bytes.

        Raises:
            SinkError: It could not be written; what was at the sink before is untouched.
            SinkBusyError: Another job has taken the sink over; its output stands.
        """
        location, empty = self.sink.location, self.sink.format.empty()
        with sink_errors(location):
            stored = [self.store.stored(p) for p in parts]
            size = self._joined().commit(stored, empty, self._lock.prove)
        self._check_committed(size)
        self._clear(f"{location.uri} is committed, but ")
        return size

    def discard(self) -> None:
        """Removes all that was kept aside, and gives the sink free.

        What can't be removed is logged, and left to the next job on this sink.
        """
        self._clear()

    def _clear(self, but: str = "") -> None:
        self._let_go()
        if not self.held:
            return
        aside = self.sink.aside
        try:
            # The lock goes last: whoever takes the sink next may have the same parts to write.
            self.remove(aside, keep=("lock",))
            # Of large parts whose worker was killed.
            store_at(aside).abort_uploads(self._lock.prove)
        except Exception as e:
            self.sink.say_left(e, but)
        self._lock.release()
        store_at(aside).remove_if_empty()

    def release(self) -> None:
        """Gives the sink free; parts stay for a rerun."""
        self._let_go()
        for folder in self._scratch if self.held else ():
            with suppress(Exception):
                self.remove(folder)
        self._lock.release()

    def remove(self, folder: Location, keep: tuple[str, ...] = ()) -> None:
        """Removes a folder aside and all below it, but what is to stay.

        Args:
            folder: The folder.
            keep: Starts of names in it; those of folders end in a slash.

        Raises:
            SinkBusyError: Another job holds the sink.
        """
        store_at(folder).remove_tree(keep, self._lock.prove)

    def _check_committed(self, expected: int) -> None:
        location = self.sink.location
        try:
            state = store_at(location).state()
        except SourceError as e:
            # The store has confirmed the commit; that it can't be asked again changes nothing.
            log.warning("%s is committed, but could not be looked at: %s", location.uri, e)
            return
        if state is None or state.size != expected:
            raise SinkError(
                f"{location.uri} holds {state.size if state else 0} bytes after the commit, "
                f"expected {expected}; another job may be writing it. Run again"
            )

    def _joined(self) -> Join:
        if self._join is None:
            file = store_at(self.sink.location).join(self._growing)
            self._join = self.sink.format.join(file, self._pieces)
            if self._join is not file:
                self._scratch.append(self._pieces)
        return self._join

    def _let_go(self) -> None:
        if self._join is not None:
            self._join.close()
            self._join = None
