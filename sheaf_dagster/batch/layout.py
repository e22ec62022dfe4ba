"""How a file is cut into batches: by the file and the job alone, so that every run cuts it alike."""

from __future__ import annotations

from dataclasses import dataclass

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.backends.base import shape_of
from sheaf_dagster.batch.spec import BatchOptions
from sheaf_dagster.batch.worker.sizing import AUTO_LAYOUT_ROWS

__all__ = ["Layout", "layout_of"]


@dataclass(frozen=True)
class Layout:
    """Where a file may be cut."""

    rows: int
    """What each chunk holds a whole multiple of."""
    window: int | None = None
    """Rows out of which batches are taken by size; None: batches are as in the file."""


def layout_of(options: BatchOptions, backend: type[ModelBackend]) -> Layout:
    """The layout of a job's files with a backend."""
    own = backend.window_rows if shape_of(backend) == "stages" else None
    if options.batch_budget is not None:
        window = own or AUTO_LAYOUT_ROWS
        return Layout(window, window)
    if options.batch_size == "auto":
        return Layout(AUTO_LAYOUT_ROWS)
    if own is None or options.bucket_by is not None:
        return Layout(options.batch_size)
    window = -(-own // options.batch_size) * options.batch_size
    return Layout(window, window)
