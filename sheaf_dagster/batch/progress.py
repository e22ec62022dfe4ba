"""How far a job is, and how long it will take: in words, and as a bar."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sheaf_dagster.batch.results import BatchProgress

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "EVERY_SECONDS",
    "OnProgress",
    "progress_bar",
    "progress_lines",
    "progress_text",
    "shown_progress",
]

OnProgress = Callable[[BatchProgress], None]

EVERY_SECONDS = 10.0
"""Seconds between two progress lines in a log, unless told otherwise."""

_log = logging.getLogger("sheaf_dagster")


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
        tell: Takes the line, for example a logger's ``info``.
        every_s: Seconds between lines. The first line comes after half of that time.
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
        title: Text before the bar.
        files: Number of all files, if the caller knows it. The bar counts files if there are
            several, and rows otherwise.
        console: Where to draw the bar.
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
        task = bar.add_task(title, total=None, text="validating rows and starting workers")

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
