"""Checking files against a contract alone: no backend, no cluster, nothing written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sheaf_dagster.batch.file_run import check_chunks, validate_source
from sheaf_dagster.batch.progress import OnProgress
from sheaf_dagster.batch.results import BatchProgress, ValidationReport
from sheaf_dagster.batch.rows.requests import ChunkCheck, RowContract
from sheaf_dagster.storage import Location, ScannedSource, scan_source

__all__ = ["validate_files"]

_BATCH_SIZE = 64


def validate_files(
    contract: RowContract,
    sources: Sequence[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    batch_size: int = _BATCH_SIZE,
    row_limit: int | None = None,
    on_progress: OnProgress | None = None,
) -> ValidationReport:
    """Checks every row of some files, read as one, against a contract.

    The check streams: its memory doesn't grow with the files.

    Args:
        contract: What rows must be.
        sources: Paths or URIs, ``.gz`` and ``.zst`` by suffix.
        storage_options: Arguments of their fsspec file system.
        batch_size: Rows of a batch, by which the files are cut into chunks.
        row_limit: Check the first rows only.
        on_progress: Called after each chunk.

    Raises:
        SourceError: A file is missing or can't be read.
    """
    started = time.perf_counter()
    locations = [Location.of(uri, dict(storage_options or {})) for uri in sources]
    with tempfile.TemporaryDirectory(prefix="sheaf-") as folder:
        source = scan_source(locations, batch_size, row_limit=row_limit, spool=Location.of(folder))
        checks: Iterable[ChunkCheck] = check_chunks(
            contract, [f.text for f in source.files], source.chunks
        )
        if on_progress is not None:
            checks = _telling(checks, source, on_progress, started)
        report, _ = validate_source(source, checks)
    report.seconds = time.perf_counter() - started
    return report


def _telling(
    checks: Iterable[ChunkCheck], source: ScannedSource, tell: OnProgress, started: float
) -> Iterator[ChunkCheck]:
    began, done = time.perf_counter(), 0
    for check in checks:
        yield check
        done += check.rows
        now = time.perf_counter()
        rate = done / max(now - began, 1e-9)
        tell(
            BatchProgress(
                rows_done=done,
                rows_total=source.rows,
                files_done=0,
                files_total=1,
                rows_per_second=rate,
                eta_seconds=(source.rows - done) / rate if rate else None,
                elapsed_seconds=now - started,
            )
        )
