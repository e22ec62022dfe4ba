"""How far a job is, and how long it will take: measured, in words, and as a bar."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sheaf_dagster.batch.results import BatchProgress

if TYPE_CHECKING:
    from rich.console import Console

    from sheaf_dagster.batch.file_run import FileRun

__all__ = [
    "EVERY_SECONDS",
    "OnProgress",
    "ProgressMeter",
    "progress_bar",
    "progress_lines",
    "progress_text",
    "shown_progress",
]

OnProgress = Callable[[BatchProgress], None]

EVERY_SECONDS = 10.0
"""Seconds between two progress lines in a log, unless told otherwise."""

_TICK_SECONDS = 0.5

_log = logging.getLogger("sheaf_dagster")


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

    def ended(self, task: FileRun) -> None:
        """A file is committed or has failed."""
        self.files_done += 1
        self._ended_rows += task.rows_done
        self._ended_total += task.rows_done
        self._ended_resumed += task.resumed_rows

    def tick(self, running: Iterable[FileRun], *, force: bool = False) -> None:
        """Tells the callback, if it is time to."""
        if self._callback is None or (not force and time.monotonic() < self._next):
            return
        now = time.monotonic()
        self._next = now + _TICK_SECONDS
        tasks = list(running)
        done = self._ended_rows + sum(t.rows_done for t in tasks)
        total = self._ended_total + sum(t.rows for t in tasks)
        resumed = self._ended_resumed + sum(t.resumed_rows for t in tasks)
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


def progress_text(p: BatchProgress, *, files: int | None = None, noun: str = "files") -> str:
    """How far a job is, as one line: rows, rate, files, and the time to go.

    There is no rate before the first row that this job answers itself.

    Args:
        p: What the job said.
        files: How many files there are in all, where the caller knows; a job knows only those
            that it has looked at.
        noun: What a file is to the reader, such as ``partitions``.
    """
    many = max(files or 0, p.files_total) > 1
    known = f"of {p.rows_total:,} rows" + (" known so far" if many else "")
    resumed = f" ({p.rows_resumed:,} resumed)" if p.rows_resumed else ""
    parts = [f"{p.rows_done:,} {known}{resumed}"]
    if p.rows_per_second > 0:
        parts.append(f"{_rate_text(p.rows_per_second)} rows/s")
    if many:
        parts.append(f"{p.files_done:,} of {max(files or 0, p.files_total):,} {noun} done")
    left = _seconds_left(p, files)
    if left is not None:
        parts.append(f"about {_duration(left)} to go")
    return ", ".join(parts)


def progress_lines(
    tell: Callable[[str], None],
    *,
    every_s: float = EVERY_SECONDS,
    files: int | None = None,
    noun: str = "files",
) -> OnProgress:
    """A callback that writes a line every so often, however often it is called.

    Args:
        tell: Takes the line; a logger's ``info``, say.
        every_s: Seconds between lines; the first comes after half of them.
        files: As in ``progress_text``.
        noun: As in ``progress_text``.
    """
    next_at = time.monotonic() + every_s / 2

    def on_progress(p: BatchProgress) -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + every_s
            tell(progress_text(p, files=files, noun=noun))

    return on_progress


@contextmanager
def progress_bar(
    title: str, *, files: int | None = None, console: Console | None = None
) -> Iterator[OnProgress]:
    """A bar on stderr, or in a notebook's cell, for as long as the block runs.

    Example::

        with progress_bar("forecasts") as bar:
            BatchRunner(model, on_progress=bar).run(spec)

    Args:
        title: Stands before the bar.
        files: How many files there are in all, where the caller knows: the bar then counts
            files where there are several, else rows.
        console: Where it is drawn.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, text="checking rows and starting workers")

        def on_progress(p: BatchProgress) -> None:
            counted = (p.files_done, files) if (files or 0) > 1 else (p.rows_done, p.rows_total)
            bar.update(
                task,
                completed=counted[0],
                total=counted[1] or None,
                text=progress_text(p, files=files),
            )

        yield on_progress


@contextmanager
def shown_progress(title: str, *, files: int | None = None) -> Iterator[OnProgress]:
    """A bar where somebody is looking; lines in the log ``sheaf_dagster`` elsewhere."""
    if _somebody_is_looking():
        with progress_bar(title, files=files) as bar:
            yield bar
    else:
        yield progress_lines(lambda line: _log.info("%s: %s", title, line), files=files)


def _somebody_is_looking() -> bool:
    """Whether stderr is a terminal, or this is a notebook."""
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    shell: Any = sys.modules.get("IPython")
    shell = shell.get_ipython() if shell is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _seconds_left(p: BatchProgress, files: int | None) -> float | None:
    """Files not scanned yet have no known rows: while there are any, time goes by files done."""
    if files is None or files <= max(p.files_total, 1):
        return p.eta_seconds
    return p.elapsed_seconds * (files / p.files_done - 1) if p.files_done else None


def _rate_text(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
