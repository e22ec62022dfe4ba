"""The two ends of the Ray Data pipeline: the feed of bundles, and the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from sheaf_dagster.batch.control import MAX_ATTEMPTS
from sheaf_dagster.batch.loading import (
    LoadedBackend,
    ModelContext,
    cached_backend,
    load_backend,
)
from sheaf_dagster.batch.worker import (
    ChunkFailure,
    ChunkReport,
    FileJob,
    run_chunks,
    worker_name,
)
from sheaf_dagster.errors import WorkerCrashError
from sheaf_dagster.storage import Chunk

__all__ = ["IDX_FIELD", "BundleFeed", "_BackendActor", "run_bundle_task"]

IDX_FIELD = "_sheaf_row_idx"
"""Column that carries the position of a descriptor's first row through Ray Data."""

_REPORT_EVERY_SECONDS = 0.2


class BundleFeed(Datasource):
    """Bundles of chunk descriptors, as the control actor hands them out.

    A source that is read while the job finds out what there is to do: validation of one file
    overlaps the inference of another, in one dataset with one pool of workers.
    """

    def __init__(self, control: Any) -> None:
        self._control = control

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_name(self) -> str:
        return "SheafBundles"

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        control = self._control

        def read() -> Iterator[pa.Table]:
            index = 0
            while (bundle := ray.get(control.next_bundle.remote(index))) is not None:
                work = [
                    (job, c.index, c.file, c.start, c.end, c.first_row, c.rows, c.first_line, c.crc)
                    for job, c in bundle.chunks
                ]
                first_row = bundle.chunks[0][1].first_row
                yield pa.table(
                    {
                        IDX_FIELD: [first_row],
                        "bundle": [bundle.id],
                        "chunks": [orjson.dumps(work).decode()],
                    }
                )
                index += 1

        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, metadata)]


def run_bundle_task(table: pa.Table, context: ModelContext, control: Any) -> Iterator[pa.Table]:
    """One stateless task: bundles through the model that this process has loaded or now loads."""
    yield from _run_table(table, context, control, lambda: cached_backend(context))


class _BackendActor:
    """One warm worker of a fixed pool; loads its model once, when the first file is valid."""

    def __init__(self, context: ModelContext, control: Any) -> None:
        self._context = context
        self._control = control
        self._loaded: LoadedBackend | None = None
        self._error: Exception | None = None
        ray.get(control.ready.remote(worker_name()))
        if ray.get(control.gate.remote()):
            try:
                self._loaded = load_backend(context)
            except Exception as e:
                # Raised here, Ray would start the actor again and again, for ever.
                self._error = e

    def _backend(self) -> LoadedBackend:
        if self._error is not None:
            raise self._error
        assert self._loaded is not None
        return self._loaded

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        yield from _run_table(table, self._context, self._control, self._backend)


def _run_table(
    table: pa.Table, context: ModelContext, control: Any, backend: Callable[[], LoadedBackend]
) -> Iterator[pa.Table]:
    for row in table.to_pylist():
        chunks = [(job, Chunk(*rest)) for job, *rest in orjson.loads(row["chunks"])]
        yield from _batched(_run_bundle(row["bundle"], chunks, context, control, backend))


def _run_bundle(
    bundle: int,
    chunks: list[tuple[int, Chunk]],
    context: ModelContext,
    control: Any,
    backend: Callable[[], LoadedBackend],
) -> Iterator[ChunkReport]:
    attempt, jobs, cancelled = ray.get(control.enter.remote(bundle))
    started = time.perf_counter()
    work = [(jobs[job], chunk) for job, chunk in chunks if job not in cancelled]
    try:
        loaded = backend()
    except Exception as e:
        yield from _all_failed(work, e, context)
    else:
        if attempt == 1:
            yield from run_chunks(context, loaded, work)
        else:
            yield from _run_again(work, context, control, loaded)
    control.leave.remote(bundle, time.perf_counter() - started)


def _run_again(
    work: list[tuple[FileJob, Chunk]], context: ModelContext, control: Any, loaded: LoadedBackend
) -> Iterator[ChunkReport]:
    """A bundle whose worker died: chunk by chunk, so that the one to blame is known."""
    done = {id(job): job.store.existing() for job, _ in work}
    for job, chunk in work:
        part = done[id(job)].get(chunk.index)
        if part is not None:
            yield ChunkReport(job.id, chunk.index, chunk.first_row, worker_name(), part=part)
            continue
        if ray.get(control.begin.remote(job.id, chunk.index)) > MAX_ATTEMPTS:
            error = WorkerCrashError(
                f"{job.names[chunk.file]}, the {chunk.rows} rows from line {chunk.first_line}: "
                f"their worker process died {MAX_ATTEMPTS + 1} times (segmentation fault, exit, or "
                f"killed for memory) in backend {context.spec.backend!r}; look at these rows "
                "and at the worker's log, lower batch_size, or give the model more memory_gb"
            )
            yield _failed(job, chunk, error)
            continue
        yield from run_chunks(context, loaded, [(job, chunk)])


def _all_failed(
    work: list[tuple[FileJob, Chunk]], error: Exception, context: ModelContext
) -> Iterator[ChunkReport]:
    seen = set()
    for job, chunk in work:
        if job.id not in seen:
            seen.add(job.id)
            yield _failed(job, chunk, error)


def _failed(job: FileJob, chunk: Chunk, error: Exception) -> ChunkReport:
    return ChunkReport(
        job.id,
        chunk.index,
        chunk.first_row,
        worker_name(),
        failure=ChunkFailure.of(error, job.names[chunk.file]),
    )


def _batched(reports: Iterator[ChunkReport]) -> Iterator[pa.Table]:
    """Reports as tables, a few times a second: each table costs the driver milliseconds."""
    held: list[ChunkReport] = []
    last = time.monotonic()
    for report in reports:
        held.append(report)
        if time.monotonic() - last >= _REPORT_EVERY_SECONDS:
            yield _table(held)
            held, last = [], time.monotonic()
    if held:
        yield _table(held)


def _table(reports: list[ChunkReport]) -> pa.Table:
    """One row for all of them: Ray Data would cut more rows into a block each."""
    return pa.table(
        {
            IDX_FIELD: pa.array([reports[0].first_row], pa.int64()),
            "reports": pa.array([orjson.dumps([r.to_dict() for r in reports]).decode()]),
        }
    )
