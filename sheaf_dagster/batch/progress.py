"""How far a job is, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from sheaf_dagster.batch.file_task import FileTask
from sheaf_dagster.batch.results import BatchProgress

__all__ = ["ProgressMeter"]

_EVERY_SECONDS = 0.5


class ProgressMeter:
    """Counts what a job has done and tells a callback, a few times a second at most."""

    def __init__(self, callback: Callable[[BatchProgress], None] | None) -> None:
        self._callback = callback
        self._started = time.monotonic()
        self._first_row_at: float | None = None
        self._next = self._started + _EVERY_SECONDS
        self.files_total = 0
        self.files_done = 0
        self._ended_rows = 0
        self._ended_total = 0
        self._ended_resumed = 0

    def ended(self, task: FileTask) -> None:
        """A file is committed or has failed."""
        self.files_done += 1
        self._ended_rows += task.rows_done
        self._ended_total += task.rows_done
        self._ended_resumed += task.resumed_rows

    def tick(self, running: Iterable[FileTask], *, force: bool = False) -> None:
        """Tells the callback, if it is time to."""
        if self._callback is None or (not force and time.monotonic() < self._next):
            return
        now = time.monotonic()
        self._next = now + _EVERY_SECONDS
        tasks = list(running)
        done = self._ended_rows + sum(t.rows_done for t in tasks)
        total = self._ended_total + sum(t.rows for t in tasks)
        resumed = self._ended_resumed + sum(t.resumed_rows for t in tasks)
        fresh = done - resumed
        if fresh and self._first_row_at is None:
            self._first_row_at = now
        rate = fresh / max(now - self._started, 1e-9)
        self._callback(
            BatchProgress(
                rows_done=done,
                rows_total=total,
                files_done=self.files_done,
                files_total=self.files_total,
                rows_per_second=rate,
                eta_seconds=(total - done) / rate if rate > 0 else None,
                elapsed_seconds=now - self._started,
            )
        )
