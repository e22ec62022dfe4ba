"""One job at a time on a sink of a remote store, where there are no file locks.

The lock is a small object beside the sink, made by a request that fails where it exists
already. Its holder renews it; a job that finds it watches whether it still changes. So a
running job is told from a killed one without trusting any clock but one's own.

What it can't do: a holder that is cut off from the store for longer than ``STALE_SECONDS``
loses the sink to the next job. It notices before it commits, and gives way. Between that look
and the commit there is a moment in which both could commit; each would commit a whole output.
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
from sheaf_dagster.storage.location import Location

__all__ = ["Lease"]

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
"""How often a holder renews its lock."""

STALE_SECONDS = 45.0
"""A lock that hasn't changed for this long belongs to nobody any more."""

WATCH_SECONDS = 1.0
SETTLE_SECONDS = 0.5
"""After taking a stale lock over: another job that saw it stale too has written by then."""

_dead: set[str] = set()
"""Names of processes one of whose locks has gone stale here: those of their other locks aren't
waited for again. A process that lives on takes another name when it learns of it."""


class _Identity:
    """The name of this process in its locks."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self._former: set[str] = set()

    def change(self) -> None:
        """Takes another name: under this one others hold the process for dead."""
        self._former.add(self.name)
        self.name = uuid.uuid4().hex

    def is_ours(self, name: object) -> bool:
        return name == self.name or name in self._former


class Lease:
    """The lock of one sink.

    Args:
        marker: The object that is the lock.
        what: Names the sink in messages.
    """

    def __init__(self, marker: Location, what: str) -> None:
        self._marker = marker
        self._what = what
        self.id = uuid.uuid4().hex
        self._beat = 0
        self._guard = threading.Lock()
        self._held = False

    def take(self) -> None:
        """Takes the lock, at once or after a killed holder's has gone stale.

        Raises:
            SinkBusyError: A running job holds it.
        """
        _renewer.add(self)  # known as alive before its lock can be seen
        try:
            self._take()
        except BaseException:
            _renewer.remove(self)
            raise
        self._held = True

    def _take(self) -> None:
        seen: dict[str, Any] | None = None
        seen_at = time.monotonic()
        while not self._create():
            found = self._read()
            if found is None:
                time.sleep(WATCH_SECONDS / 10)
                continue
            if found.get("lease") == self.id:
                break  # made by a request whose answer was lost
            if seen is None:
                seen, seen_at = found, time.monotonic()
            ours = _identity.is_ours(found.get("process"))
            if found != seen or (ours and _renewer.holds(found.get("lease"))):
                raise self._busy()
            if ours or _is_dead(found):  # ours: the request that gave it back failed
                self._take_over()
                break
            if time.monotonic() - seen_at >= STALE_SECONDS:
                _dead.add(str(found.get("process")))
                self._take_over()
                break
            time.sleep(WATCH_SECONDS)

    def check(self) -> None:
        """Makes sure that the lock is still ours.

        Raises:
            SinkBusyError: Another job has taken the sink over.
        """
        found = self._read()
        if found is None or found.get("lease") != self.id:
            self._lost()
            raise SinkBusyError(
                f"{self._what} was taken over by another job while this one could not reach the "
                "store; its output stands. Run again if this one is wanted instead"
            )

    def release(self) -> None:
        """Gives the lock back, if it is still ours."""
        _renewer.remove(self)
        with self._guard, suppress(Exception):  # it would go stale by itself
            self._held = False
            found = self._read()
            if found is not None and found.get("lease") == self.id:
                fs, path = self._marker.fs, self._marker.path
                self._marker.remote("delete", lambda: fs.rm_file(path))

    def renew(self) -> None:
        """Shows that the holder lives."""
        with self._guard:
            if not self._held:
                return
            found = self._read()
            if found is None or found.get("lease") != self.id:
                self._lost()
            else:
                self._beat += 1
                self._marker.write(self._content())

    def _lost(self) -> None:
        if self._held:
            self._held = False
            _identity.change()

    def _content(self) -> bytes:
        state = {
            "lease": self.id,
            "process": _identity.name,
            "host": _host(),
            "pid": os.getpid(),
            "beat": self._beat,
        }
        return json.dumps(state).encode()

    def _create(self) -> bool:
        fs, path, content = self._marker.fs, self._marker.path, self._content()
        try:
            self._marker.remote("create", lambda: fs.pipe_file(path, content, mode="create"))
        except FileExistsError:
            return False
        return True

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._marker.read())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _take_over(self) -> None:
        log.info("%s: taking over the lock of a job that has stopped", self._what)
        self._marker.write(self._content())
        time.sleep(SETTLE_SECONDS * random.uniform(1.0, 1.5))  # noqa: S311
        found = self._read()
        if found is None or found.get("lease") != self.id:
            raise self._busy()

    def _busy(self) -> SinkBusyError:
        return SinkBusyError(
            f"{self._what} is being written by another job; wait until it has finished, or write "
            "to another sink"
        )


def _host() -> str:
    """Where a process id means something: machine, boot and container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as f:
            parts.append(f.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "|".join(parts)


def _is_dead(found: dict[str, Any]) -> bool:
    """Whether a lock's holder is known to be gone, without waiting."""
    if found.get("process") in _dead:
        return True
    pid = found.get("pid")
    if found.get("host") != _host() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


class _Renewer:
    """One thread that renews all locks of this process."""

    def __init__(self) -> None:
        self._leases: set[Lease] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.add(lease)
            if self._thread is None:
                self._wake = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._wake,), daemon=True, name="sheaf-lease"
                )
                self._thread.start()

    def holds(self, id: object) -> bool:
        with self._lock:
            return any(lease.id == id for lease in self._leases)

    def remove(self, lease: Lease) -> None:
        with self._lock:
            self._leases.discard(lease)
            if not self._leases and self._thread is not None:
                self._wake.set()
                self._thread = None

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            with self._lock:
                leases = list(self._leases)
            for lease in leases:
                # A renewal that fails is made up by the next, or noticed before the commit.
                with suppress(Exception):
                    lease.renew()


_identity = _Identity()
_renewer = _Renewer()


def _begin_anew() -> None:
    """In a forked process: the locks are its parent's, and so is the thread that renews them."""
    global _identity, _renewer
    _identity = _Identity()
    _renewer = _Renewer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
