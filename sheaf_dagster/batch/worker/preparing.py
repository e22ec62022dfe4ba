"""Preparing rows of a backend in stages, in threads, ahead of the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.making import Batch
from sheaf_dagster.batch.worker.memory import bytes_of
from sheaf_dagster.batch.worker.overlap import TICK_SECONDS, Helpers

__all__ = ["BYTES_AHEAD", "Preparing", "Ready", "Slice", "Window", "prepared"]

BYTES_AHEAD = 256 * 2**20
"""About what prepared rows may take, beside those that are on the device."""

_SLICE_SECONDS = 0.002
"""About what a thread prepares at a time: handing over takes fifty microseconds."""

_MOST_SLICES = 64


class Ready(NamedTuple):
    """A prepared row, or what was wrong with it."""

    value: Any
    size: int
    error: Exception | None = None


class Slice(NamedTuple):
    """What one thread has prepared at a time, and how long it took."""

    ready: list[Ready]
    seconds: float
    row_bytes: int


class Window:
    """A batch, or the rows of which batches are made by size, while it is prepared."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.slices: list[Future[Slice]] = []
        """Empty where the rows are not to be prepared."""
        self.next_since: float | None = None
        """Since when the device has no other one before it."""


class Preparing:
    """Has rows prepared, ahead of the device by a bounded amount of memory.

    The reader's thread begins it, the next one takes what is done, and the device's says that it
    waits.
    """

    def __init__(self, files: Files, helpers: Helpers, bytes_ahead: int = BYTES_AHEAD) -> None:
        self._jobs = files
        self._bytes_ahead = bytes_ahead
        self._helpers = helpers
        self._seconds = _SLICE_SECONDS
        """About what one row takes."""
        self._row_bytes = 0.0
        self._room = threading.Condition()
        self._rows = 0
        """Prepared, or being prepared."""
        self._waits_since: float | None = None
        self.closed = False

    def close(self) -> None:
        """Lets go of the threads that read and that take."""
        with self._room:
            self.closed = True
            self._room.notify_all()

    def awaited(self, waits: bool) -> None:
        """Says whether the device waits."""
        self._waits_since = (self._waits_since or perf_counter()) if waits else None

    def windows(self, batches: Iterator[Batch]) -> Iterator[Window]:
        """The batches, as soon as there is memory for their rows, while they are prepared."""
        for batch in batches:
            with self._room:
                self._room.wait_for(self._has_room)
                self._rows += len(batch.rows)
            window = Window(batch)
            if batch.failure is None and not self._jobs.is_known_to_hang(batch):
                self._begin(window)
            yield window

    def _has_room(self) -> bool:
        known = self._row_bytes > 0
        return (
            self.closed
            or not self._rows
            or (known and self._rows * self._row_bytes < self._bytes_ahead)
        )

    def _begin(self, window: Window) -> None:
        rows, backend = window.batch.rows, self._jobs.loaded.backend
        size = max(1, int(_SLICE_SECONDS / self._seconds))
        size = max(min(size, -(-len(rows) // self._helpers.count)), -(-len(rows) // _MOST_SLICES))
        window.slices = [
            self._helpers.submit(partial(prepared, backend, rows[i : i + size]))
            for i in range(0, len(rows), size)
        ]
        for future in window.slices:
            future.add_done_callback(self._measure)

    def _measure(self, future: Future[Slice]) -> None:
        if not future.cancelled():
            made = future.result()
            with self._room:
                self._row_bytes = max(0.95 * self._row_bytes, made.row_bytes)
                self._seconds = max(1e-6, 0.5 * (self._seconds + made.seconds / len(made.ready)))
                self._room.notify_all()

    def is_done(self, window: Window) -> bool:
        """Whether the rows are prepared, within a moment."""
        if wait(window.slices, TICK_SECONDS).not_done:
            return False
        if any(future.cancelled() for future in window.slices):  # others beside it did hang
            self._begin(window)
            return False
        return True

    def is_hanging(self, window: Window) -> bool:
        """Whether the device has waited for a window, which is next, longer than a call may take."""
        seconds, since = window.batch.making.work.batch_timeout, self._waits_since
        window.next_since = window.next_since or perf_counter()
        if seconds is None or since is None:
            return False
        return perf_counter() - max(since, window.next_since) > seconds

    def leave_behind(self) -> None:
        """Goes on without the threads that hang; what waited for them is prepared again."""
        self._helpers.replace()

    def take(self, window: Window) -> dict[int, Ready]:
        """What was made of the rows, by their position."""
        found = [ready for future in window.slices for ready in future.result().ready]
        return {row.position: made for row, made in zip(window.batch.rows, found, strict=True)}

    def gone(self, rows: int) -> None:
        """Says that so many rows have left for the device."""
        with self._room:
            self._rows -= rows
            self._room.notify_all()


def prepared(backend: ModelBackend, rows: Sequence[Row]) -> Slice:
    """Some rows prepared, in one of the threads; what one raises is its own."""
    started = perf_counter()
    ready = []
    for row in rows:
        try:
            value = backend.prepare(row.request)
            ready.append(Ready(value, max(1, int(backend.size(value)))))
        except Exception as e:
            ready.append(Ready(None, 1, e))
    return Slice(ready, perf_counter() - started, bytes_of(ready[0].value))
