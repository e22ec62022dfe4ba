"""One job at a time on a sink of a remote store, where there are no file locks.

The lock is a small object beside the sink. It is made where there is none, and each further write
replaces the version that its holder wrote last (``marker.py``), so that nobody's lock is ever
written over unseen. Its holder renews it; a job that finds it watches whether it still changes.
So a running job is told from a killed one without trusting any clock but one's own. ::

    free ── create ──> held ── replace, every BEAT_SECONDS ──> held ── remove ──> free
                        │
                        └─ unchanged for STALE_SECONDS ── replace by another job ──> theirs: lost

A holder that is cut off from the store for longer than ``STALE_SECONDS`` loses the sink to the
next job. It can't miss that: each destructive step is preceded by a write of the lock
(``Lease.prove``), which fails once the lock is another's.

On a store that doesn't compare and swap, two jobs that take a stale lock in the same half second
may both believe that they have it, until the next write of either shows who does.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from sheaf_dagster.errors import SinkBusyError
from sheaf_dagster.storage.marker import Marker, Stored

__all__ = ["Lease"]

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
"""How often a holder renews its lock, and how long a renewal may take."""

STALE_SECONDS = 45.0
"""A lock that hasn't changed for this long belongs to nobody any more."""

WATCH_SECONDS = 1.0
SETTLE_SECONDS = 0.5
"""Only where the store doesn't compare and swap: another job that took the lock has written by
then."""


class _Process:
    """This process, as its locks name it, and what it knows of others."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self.leases: set[str] = set()
        """Locks that are held here."""
        self.silent: dict[str, float] = {}
        """Processes one of whose locks has gone stale: the time, on their own clock, up to which
        they are known to have lived. Their other locks aren't waited for again."""


class Lease:
    """The lock of one sink.

    Args:
        marker: The object that is the lock.
        what: Names the sink in messages.
    """

    def __init__(self, marker: Marker, what: str) -> None:
        self._marker = marker
        self._what = what
        self.id = uuid.uuid4().hex
        self._beat = 0
        self._guard = threading.Lock()
        self._version: str | None = None
        self._ended = threading.Event()

    @property
    def held(self) -> bool:
        """Whether it is ours, as far as we have heard."""
        return self._version is not None

    def take(self) -> None:
        """Takes the lock, at once or after a killed holder's has gone stale.

        Raises:
            SinkBusyError: A running job holds it.
        """
        _process.leases.add(self.id)  # known as alive before its lock can be seen
        try:
            self._version = self._take()
        except BaseException:
            _process.leases.discard(self.id)
            raise
        # A thread each: a request that hangs holds up no other lock.
        threading.Thread(target=self._renew, daemon=True, name="sheaf-lease").start()

    def prove(self) -> None:
        """Makes sure, by writing it, that the lock is ours at this moment.

        Raises:
            SinkBusyError: Another job has taken the sink over.
            OSError: The store doesn't say.
        """
        with self._guard:
            if self._version is not None:
                self._write(None)
            if self._version is None:
                raise SinkBusyError(
                    f"{self._what} was taken over by another job while this one could not reach "
                    "the store; the other job's output stands. Run again if you want this job's "
                    "output instead"
                )

    def release(self) -> None:
        """Gives the lock back, if it is still ours."""
        self._ended.set()
        with self._guard:
            with suppress(Exception):  # it would go stale by itself
                if self._version is not None:
                    self._write(None)  # from here on nobody takes it for stale
                if self._version is not None:
                    self._marker.remove(self._version)
            self._lost()

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # A renewal that fails is made up by the next, or noticed when the hold is proven.
            with self._guard, suppress(Exception):
                if self._version is not None:
                    self._write(BEAT_SECONDS)

    def _write(self, timeout: float | None) -> None:
        for _ in range(3):
            self._beat += 1
            assert self._version is not None
            version = self._marker.replace(self._content(), self._version, timeout)
            if version is not None:
                self._version = version
                return
            found = self._marker.read()
            if found is None or _told(found).get("lease") != self.id:
                break
            self._version = found.version  # a write of ours, whose answer was lost
        self._lost()

    def _lost(self) -> None:
        self._version = None
        self._ended.set()
        _process.leases.discard(self.id)

    def _take(self) -> str:
        watched: Stored | None = None
        since = 0.0
        while True:
            version = self._marker.create(self._content())
            if version is None:
                found = self._marker.read()
                if found is None:
                    time.sleep(WATCH_SECONDS / 10)
                    continue
                if _told(found).get("lease") == self.id:  # by a request whose answer was lost
                    version = found.version
                elif watched is None:
                    watched, since = found, time.monotonic()
                elif found.version != watched.version:
                    raise self._busy()
            if version is None:
                assert found is not None
                version = self._succeed(found, time.monotonic() - since)
            if version is not None and self._is_settled(version):
                return version
            if version is None:
                time.sleep(WATCH_SECONDS)

    def _succeed(self, found: Stored, unchanged: float) -> str | None:
        """Takes over the lock of a job that has ended; None where it may be running."""
        told = _told(found)
        if told.get("process") == _process.name:
            if told.get("lease") in _process.leases:
                raise self._busy()
        elif not _has_ended(told):  # of our own process: the request that gave it back failed
            if unchanged < STALE_SECONDS:
                return None
            if isinstance(at := told.get("at"), (int, float)):
                _process.silent[str(told.get("process"))] = at
        log.info("%s: taking over the lock of a job that has stopped", self._what)
        return self._marker.replace(self._content(), found.version)

    def _is_settled(self, version: str) -> bool:
        if self._marker.exact:
            return True
        time.sleep(SETTLE_SECONDS * random.uniform(1.0, 1.5))  # noqa: S311
        found = self._marker.read()
        if found is None or found.version != version:
            raise self._busy()
        return True

    def _content(self) -> bytes:
        state = {
            "lease": self.id,
            "process": _process.name,
            "host": _host(),
            "pid": os.getpid(),
            "beat": self._beat,
            "at": time.monotonic(),
        }
        return json.dumps(state).encode()

    def _busy(self) -> SinkBusyError:
        return SinkBusyError(
            f"{self._what} is being written by another job; wait until it has finished, or write "
            "to another sink"
        )


def _told(found: Stored) -> dict[str, Any]:
    """What a lock says of its holder; nothing where it is damaged."""
    try:
        told = json.loads(found.content)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _has_ended(told: dict[str, Any]) -> bool:
    """Whether a lock's holder is known to be gone, without waiting."""
    at, silent = told.get("at"), _process.silent.get(str(told.get("process")))
    if silent is not None and isinstance(at, (int, float)) and at <= silent + 2 * BEAT_SECONDS:
        return True  # alive for longer, it would have renewed the lock that went stale, too
    pid = told.get("pid")
    if told.get("host") != _host() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _host() -> str:
    """Where a process id means something: machine, boot and container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as f:
            parts.append(f.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "|".join(parts)


_process = _Process()


def _begin_anew() -> None:
    """In a forked process: the locks are its parent's, and so are the threads that renew them."""
    global _process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
