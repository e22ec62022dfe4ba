"""Jobs in this process, without Ray: small files, debugging, tests of a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sheaf_dagster.batch.file_task import FileTask, check_chunks
from sheaf_dagster.batch.loading import ModelContext, cached_backend
from sheaf_dagster.batch.progress import ProgressMeter
from sheaf_dagster.batch.results import BatchOutcome, BatchProgress, BatchResult
from sheaf_dagster.batch.rows import ChunkCheck, RowContract
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker import run_chunks
from sheaf_dagster.storage import ScannedSource

__all__ = ["run_local"]


def run_local(
    context: ModelContext,
    specs: Iterable[BatchSpec],
    on_progress: Callable[[BatchProgress], None] | None,
) -> Iterator[BatchOutcome]:
    """Runs files one after the other with the model loaded in this process."""
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


def _run_file(task: FileTask, context: ModelContext, progress: ProgressMeter) -> BatchResult:
    job, chunks = task.prepare(_check_here)
    if chunks:
        loaded = cached_backend(context)
        for report in run_chunks(context, loaded, [[(job, c) for c in chunks]]):
            task.take(report)
            progress.tick([task])
    return task.commit()


def _check_here(contract: RowContract, source: ScannedSource) -> Iterable[ChunkCheck]:
    return check_chunks(contract, [f.text for f in source.files], source.chunks)
