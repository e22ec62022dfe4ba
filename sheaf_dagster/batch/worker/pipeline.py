"""What a worker does with chunks: read, parse, predict, serialise, write the part.

The same function runs in tasks, in actors and in the driver's own process, so a chunk's bytes
are the same wherever it runs.

What happens at the same time depends on the shape of the backend::

    one call   reader ──batches──▶ batch_predict ──answers──▶ writer
    stages     reader ──batches──▶ prepare (threads) ──▶ planner ──▶ infer ──outputs──▶ respond, writer
    in flight  reader ──batches──▶ predict_async (one loop, many rows) ──answers──▶ writer

The middle always belongs to the calling thread: it has the device, knows which files have failed,
and passes the reports on. Reader and writer are told what to do and hand back what they made.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.worker.beside.choice import Beside
from sheaf_dagster.batch.worker.beside.todo import Todo
from sheaf_dagster.batch.worker.files import Files, LimitFor
from sheaf_dagster.batch.worker.flight import run_in_flight
from sheaf_dagster.batch.worker.gpus import GpuSampler
from sheaf_dagster.batch.worker.loading import LoadedBackend, ModelContext
from sheaf_dagster.batch.worker.making import Batch
from sheaf_dagster.batch.worker.memory import rare_collections
from sheaf_dagster.batch.worker.overlap import Behind, InModelThread, Prefetched, in_turns
from sheaf_dagster.batch.worker.reading import read_batches
from sheaf_dagster.batch.worker.staged import run_in_stages
from sheaf_dagster.storage import Chunk, store_at

__all__ = ["run_chunks", "run_given"]

_OVERLAP_FROM_SECONDS = 0.002
"""Batches that take longer than this get reading and writing threads of their own; below it,
handing batches between threads costs more than it hides (``make bench``)."""

_TURN_SECONDS = 0.01
"""About how long a thread of the model's own has such batches at a time: it may have other jobs."""

_MAKING = threading.Lock()

_BATCHES_AHEAD = 2
_BATCHES_BEHIND = 4


def run_chunks(
    context: ModelContext,
    loaded: LoadedBackend,
    todo: Iterable[Sequence[tuple[FileWork, Chunk]]],
    stop: Callable[[], bool] = lambda: False,
    limit_for: LimitFor | None = None,
    in_model_thread: InModelThread | None = None,
    cpus: float | None = None,
) -> Iterator[ChunkReport]:
    """Runs chunks through a loaded backend; yields a report as each is done.

    A chunk that fails is reported, and the rest of its file's chunks are passed over without a
    report. Ends after the batch in hand once ``stop`` says so.

    Args:
        context: The model and its contract.
        loaded: Its backend.
        todo: Chunks with their files, a few at a time; the next are asked for when needed.
        stop: Whether to end early.
        limit_for: Makes what makes the backend's calls; by default they are made where they stand.
        in_model_thread: Makes a call from the thread of the backend's own calls; None where each of
            these is made, within its time, by what ``limit_for`` gave.
        cpus: CPUs that this worker has; by default what its model reserves.
    """
    in_model_thread = in_model_thread or (lambda call: call())
    reserved = context.spec.resources.num_gpus > 0
    with rare_collections(), GpuSampler(reserved=reserved) as loaded.gpus:
        files = Files(loaded, limit_for)
        if loaded.shape == "stages":
            own = max(1, math.ceil(cpus or context.spec.resources.num_cpus))
            yield from _run_stages(context, files, todo, stop, in_model_thread, own)
            return
        in_columns = loaded.shape == "call" and loaded.backend.takes_columns
        batches = read_batches(context, loaded.sizer, todo, files.has_failed, in_columns=in_columns)
        if loaded.shape == "flight":
            yield from run_in_flight(files, batches, stop)
        else:
            yield from _run_calls(files, batches, stop, in_model_thread)


def _run_stages(
    context: ModelContext,
    files: Files,
    todo: Iterable[Sequence[tuple[FileWork, Chunk]]],
    stop: Callable[[], bool],
    in_model_thread: InModelThread,
    cpus: int,
) -> Iterator[ChunkReport]:
    """In threads, or where that is faster in processes beside this one."""
    loaded, chunks = files.loaded, Todo(todo)
    threads = loaded.backend.prepare_threads or cpus

    def in_threads(enough: Callable[[], bool]) -> Iterator[ChunkReport]:
        batches = read_batches(context, loaded.sizer, chunks.until(enough), files.has_failed)
        return run_in_stages(files, batches, stop, in_model_thread, threads)

    with _MAKING:  # jobs in threads may share the model
        beside = loaded.beside
        if not isinstance(beside, Beside):
            beside = loaded.beside = Beside(context, loaded, cpus)
    yield from beside.run(context, files, chunks, stop, in_model_thread, in_threads)


def run_given(
    context: ModelContext,
    loaded: LoadedBackend,
    todo: Iterable[Sequence[tuple[FileWork, Chunk]]],
    stop: Callable[[], bool],
    threads: int,
    bytes_ahead: int,
) -> Iterator[ChunkReport]:
    """``run_chunks`` of a backend in stages whose model is in another process.

    Args:
        context: The model and its contract.
        loaded: Its backend, whose ``infer`` asks that process.
        todo: As for ``run_chunks``.
        stop: Whether to end early.
        threads: Threads that prepare.
        bytes_ahead: About what prepared rows may take.
    """
    with rare_collections():
        files = Files(loaded, None)
        batches = read_batches(context, loaded.sizer, todo, files.has_failed)
        yield from run_in_stages(files, batches, stop, lambda call: call(), threads, bytes_ahead)


class _Turn(NamedTuple):
    """What some batches came to, one after the other."""

    report: ChunkReport | None = None
    ended: bool = False
    """There are no more batches."""
    slow: bool = False
    """A thread that reads, and one that writes, would pay."""


def _run_calls(
    files: Files, batches: Iterator[Batch], stop: Callable[[], bool], in_model_thread: InModelThread
) -> Iterator[ChunkReport]:
    """While a batch is in the model, the next is read and parsed and the last one written.

    But only where the model takes long enough for that to pay. Where it doesn't, handing each
    batch to the model's thread doesn't either, so that all is done there.
    """
    while True:
        turn = in_model_thread(lambda: _turn(files, batches))
        yield from files.heard([turn.report])
        if turn.slow:
            yield from _run_calls_beside(files, batches, stop, in_model_thread)
            return
        if turn.ended or stop():
            return


def _turn(files: Files, batches: Iterator[Batch]) -> _Turn:
    until = perf_counter() + _TURN_SECONDS
    for batch in batches:
        finish = files.in_one_call(batch)
        report = None if finish is None else finish()
        # A remote store takes longer than any handing over.
        far = store_at(batch.making.work.store.folder).far
        slow = far or files.loaded.usual_seconds > _OVERLAP_FROM_SECONDS
        if report is not None or slow or perf_counter() > until:
            return _Turn(report, slow=slow)
    return _Turn(ended=True)


def _run_calls_beside(
    files: Files, batches: Iterator[Batch], stop: Callable[[], bool], in_model_thread: InModelThread
) -> Iterator[ChunkReport]:
    writer: Behind[ChunkReport | None] = Behind(_BATCHES_BEHIND)

    def steps(batch: Batch) -> Iterator[Sequence[ChunkReport]]:
        following: Batch | None = batch
        while following is not None:
            finish = files.in_one_call(following)
            if finish is not None:
                writer.hand(finish)
            yield list(files.heard(writer.done()))
            following = ahead.take(0)

    with writer, Prefetched(batches, _BATCHES_AHEAD) as ahead:
        while not (stop() or ahead.ended):
            batch = ahead.take()
            yield from files.heard(writer.done())
            if batch is not None:
                yield from in_turns(in_model_thread, steps(batch), stop)
        if ahead.ended:
            yield from files.heard(writer.rest())
