"""Measures how far a job is."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sheaf_dagster.batch.file_run import FileRun
from sheaf_dagster.batch.progress import OnProgress
from sheaf_dagster.batch.results import BatchProgress

__all__ = ["ProgressMeter"]

_TICK_SECONDS = 0.5


class ProgressMeter:
    """Counts what a job has done and tells a callback, a few times a second at most."""

    def __init__(self, callback: OnProgress | None) -> None:
        self._callback = callback
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._next = self._started + _TICK_SECONDS
        self.files_total = 0
        self.files_done = 0
        self._ended_rows = 0
        self._ended_total = 0
        self._ended_resumed = 0

    def ended(self, run: FileRun) -> None:
        """A file is committed or has failed."""
        self.files_done += 1
        self._ended_rows += run.rows_done
        self._ended_total += run.rows_done
        self._ended_resumed += run.resumed_rows

    def tick(self, running: Iterable[FileRun], *, force: bool = False) -> None:
        """Tells the callback, if it is time to."""
        if self._callback is None or (not force and time.monotonic() < self._next):
            return
        now = time.monotonic()
        self._next = now + _TICK_SECONDS
        runs = list(running)
        done = self._ended_rows + sum(r.rows_done for r in runs)
        total = self._ended_total + sum(r.rows for r in runs)
        resumed = self._ended_resumed + sum(r.resumed_rows for r in runs)
        rate = self._rate(now, done - resumed)
        self._callback(
            BatchProgress(
                rows_done=done,
                rows_total=total,
                files_done=self.files_done,
                files_total=self.files_total,
                rows_per_second=rate,
                eta_seconds=(total - done) / rate if rate > 0 else None,
                elapsed_seconds=now - self._started,
                rows_resumed=resumed,
            )
        )

    def _rate(self, now: float, fresh: int) -> float:
        # Counted from the first rows on: what it took to start says nothing of the rest.
        if fresh and self._first is None:
            self._first = (now, fresh)
        if self._first is not None and fresh > self._first[1]:
            return (fresh - self._first[1]) / max(now - self._first[0], 1e-9)
        return fresh / max(now - self._started, 1e-9)
