"""Jobs in this process, without Ray: small files, debugging, tests of a backend."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from sheaf_dagster.batch.file_run import FileTask, check_chunks
from sheaf_dagster.batch.messages import FileJob
from sheaf_dagster.batch.progress import ProgressMeter
from sheaf_dagster.batch.ray.capacity import amounts, demand_of
from sheaf_dagster.batch.results import BatchOutcome, BatchProgress, BatchResult
from sheaf_dagster.batch.rows.requests import ChunkCheck, Row, RowContract
from sheaf_dagster.batch.spec import BatchSpec, ModelSpec
from sheaf_dagster.batch.worker.hanging import TimeLimit, took_too_long
from sheaf_dagster.batch.worker.loading import LoadedBackend, ModelContext
from sheaf_dagster.batch.worker.local_model import LocalModel, local_model
from sheaf_dagster.batch.worker.model_thread import CallTooLongError
from sheaf_dagster.batch.worker.pipeline import run_chunks
from sheaf_dagster.errors import BatchTimeoutError
from sheaf_dagster.storage import Chunk, ScannedSource

__all__ = ["run_local"]

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        with local_model(context) as model:

            def limit_for(loaded: LoadedBackend, job: FileJob, chunk: Chunk) -> TimeLimit:
                return _LocalLimit(model, type(loaded.backend).__name__, job, chunk)

            work = [[(job, chunk) for chunk in chunks]]
            cpus = max(_available_cpus(), context.spec.resources.num_cpus)
            for report in run_chunks(context, model.load(), work, limit_for=limit_for, cpus=cpus):
                task.take(report)
                progress.tick([task])
    return task.commit()


def _available_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _check_here(contract: RowContract, source: ScannedSource) -> Iterable[ChunkCheck]:
    return check_chunks(contract, [f.text for f in source.files], source.chunks)


class _LocalLimit:
    """Makes the calls for a chunk from the model's own thread, within ``batch_timeout``."""

    def __init__(self, model: LocalModel, backend: str, job: FileJob, chunk: Chunk) -> None:
        self._model = model
        self._backend = backend
        self._seconds = job.batch_timeout
        self._where = job.names[chunk.file]

    def __call__(self, rows: Sequence[Row], call: Callable[[], T]) -> T:
        """The call's value.

        Raises:
            BatchTimeoutError: It took too long.
        """
        try:
            return self._model.call(call, self._seconds)
        except CallTooLongError:
            assert self._seconds is not None
            raise BatchTimeoutError(
                took_too_long(self._where, rows, self._backend, self._seconds)
            ) from None
