"""Jobs in this process, without Ray: small files, debugging, tests of a backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from sheaf_dagster.batch.file_run import FileTask, check_chunks
from sheaf_dagster.batch.messages import FileJob
from sheaf_dagster.batch.progress import ProgressMeter
from sheaf_dagster.batch.ray.capacity import amounts, demand_of
from sheaf_dagster.batch.results import BatchOutcome, BatchProgress, BatchResult
from sheaf_dagster.batch.rows.requests import ChunkCheck, Row, RowContract
from sheaf_dagster.batch.spec import BatchSpec, ModelSpec
from sheaf_dagster.batch.worker.hanging import InterruptingLimit, TimeLimit, took_too_long
from sheaf_dagster.batch.worker.loading import (
    LoadedBackend,
    ModelContext,
    cached_backend,
    forget_backend,
    load_backend,
)
from sheaf_dagster.batch.worker.pipeline import run_chunks
from sheaf_dagster.errors import BatchTimeoutError
from sheaf_dagster.storage import Chunk, ScannedSource

__all__ = ["run_local"]

log = logging.getLogger(__name__)


def run_local(
    context: ModelContext,
    specs: Iterable[BatchSpec],
    on_progress: Callable[[BatchProgress], None] | None,
) -> Iterator[BatchOutcome]:
    """Runs files one after the other with the model loaded in this process.

    Nothing is reserved and no limit of the cluster applies: a process is as large as it was
    started.
    """
    _say_what_is_not_reserved(context.spec)
    progress = ProgressMeter(on_progress)
    for id, spec in enumerate(specs):
        progress.files_total += 1
        task = FileTask(id, spec, context)
        try:
            result = _run_file(task, context, progress)
        except Exception as e:
            task.abandon()
            outcome = BatchOutcome(spec=spec, error=e)
        except BaseException:  # Ctrl-C, a closed iterator: parts stay, the sink is given free
            task.abandon()
            raise
        else:
            outcome = BatchOutcome(spec=spec, result=result)
        progress.ended(task)
        progress.tick((), force=True)
        yield outcome


def _say_what_is_not_reserved(model: ModelSpec) -> None:
    demand = demand_of(model)
    demand.pop("CPU", None)  # one by default, and the process has it
    if demand:
        log.warning(
            "compute='local' reserves nothing, and no limits apply: model %r, which asks for %s, "
            "runs with whatever this process has; use compute='tasks' or 'actors' to have it "
            "reserved",
            model.name,
            ", ".join(amounts(demand)),
        )


def _run_file(task: FileTask, context: ModelContext, progress: ProgressMeter) -> BatchResult:
    job, chunks = task.prepare(_check_here)
    if chunks:
        loaded = cached_backend(context)
        for report in run_chunks(
            context, loaded, [[(job, c) for c in chunks]], limit_for=_limits(context)
        ):
            task.take(report)
            progress.tick([task])
    return task.commit()


def _check_here(contract: RowContract, source: ScannedSource) -> Iterable[ChunkCheck]:
    return check_chunks(contract, [f.text for f in source.files], source.chunks)


def _limits(context: ModelContext) -> Callable[[LoadedBackend, FileJob, Chunk], TimeLimit]:
    def limit_for(loaded: LoadedBackend, job: FileJob, chunk: Chunk) -> TimeLimit:
        assert job.batch_timeout is not None
        seconds = job.batch_timeout
        backend = type(loaded.backend).__name__

        def error(rows: Sequence[Row]) -> BatchTimeoutError:
            return BatchTimeoutError(took_too_long(job.names[chunk.file], rows, backend, seconds))

        def abandon() -> None:
            forget_backend(loaded)
            if job.on_error == "record":  # the stuck one is still in use: go on with another
                loaded.backend = load_backend(context).backend

        return InterruptingLimit(seconds, error, abandon)

    return limit_for
