"""Jobs on Ray: a feeder thread prepares files, workers run their chunks, commits overlap."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from sheaf_dagster.batch.checking import check_in_parallel
from sheaf_dagster.batch.file_run import FileTask
from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.progress import ProgressMeter
from sheaf_dagster.batch.ray.cluster import (
    check_capacity,
    ray_session,
    surely_fits_here,
    worker_slots,
)
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.ray.engine_choice import engine_for
from sheaf_dagster.batch.ray.reservation import reserved_pool
from sheaf_dagster.batch.results import BatchOutcome, BatchProgress, BatchResult
from sheaf_dagster.batch.rows.requests import ChunkCheck, RowContract
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.storage import ScannedSource, Sink

if TYPE_CHECKING:
    from sheaf_dagster.batch.ray.client import DriverClient

__all__ = ["run_on_ray"]

log = logging.getLogger(__name__)

_FILES_AHEAD = 32
"""Files that may be validated and not yet committed."""

_COMMIT_THREADS = 4

_IDLE_SECONDS = 2.0
"""A task that has had nothing to do for so long, at the end of a job, gives its place back."""

_LEAVE_SECONDS = 60.0
"""How long the feeder is waited for, which may be in the middle of its caller's iterator."""


def run_on_ray(
    context: ModelContext,
    first: BatchSpec,
    specs: Iterable[BatchSpec],
    config: ClusterConfig,
    on_progress: Callable[[BatchProgress], None] | None,
    files: int | None = None,
) -> Iterator[BatchOutcome]:
    """Runs files on Ray; see ``BatchRunner.run_many``.

    Args:
        context: The model.
        first: The first file.
        specs: All files, the first one among them.
        config: Which Ray, and how much of it.
        on_progress: Called as the job goes on.
        files: How many there are, where that is known.
    """
    job = _RayJob(context, specs, config, on_progress)
    with ExitStack() as stack:
        # Cleared from the last entered to the first: Ray goes down after all that uses it.
        stack.callback(job.abandon)
        stack.callback(job.stop_feeding)
        early = surely_fits_here(context.spec, first, config)
        if early:  # the feeder scans and validates while Ray starts
            job.start_feeding()
        shared = stack.enter_context(ray_session(config))
        # Before Ray goes down: whatever the feeder asks of it after that starts another one.
        stack.callback(job.stop_feeding)
        check_capacity(context.spec, first, config)
        engine = engine_for(first, files, config)
        job.start_early(first, engine)
        if not early:
            job.start_feeding()
        pool = (
            stack.enter_context(reserved_pool(context.spec, first, config, engine))
            if shared
            else None
        )
        stack.callback(job.shutdown)
        job.start_engine(first, engine, pool)
        yield from job.outcomes()


class _RayJob:
    """One job's driver side.

    Three kinds of work meet here: the feeder thread prepares files in order; the engine
    reports chunks; a small pool commits finished files. The caller's thread brings them
    together, so callbacks and outcomes come from one thread.
    """

    def __init__(
        self,
        context: ModelContext,
        specs: Iterable[BatchSpec],
        config: ClusterConfig,
        on_progress: Callable[[BatchProgress], None] | None,
    ) -> None:
        self._context = context
        self._specs = specs
        self._config = config
        self._progress = ProgressMeter(on_progress)
        self._engine: Any = None
        self._engine_ready = threading.Event()
        self._stop = threading.Event()
        self._leave_by: float | None = None
        self._room = threading.Semaphore(_FILES_AHEAD)
        self._fed: queue.Queue[tuple[FileTask, Exception | None] | BaseException | None] = (
            queue.Queue()
        )
        self._feeder = threading.Thread(target=self._feed, daemon=True, name="sheaf-feeder")
        self._commits = ThreadPoolExecutor(_COMMIT_THREADS, thread_name_prefix="sheaf-commit")
        self._running: dict[int, FileTask] = {}
        self._committing: dict[Future[BatchResult], FileTask] = {}
        self._discarded: list[tuple[Sink, str]] = []
        self._fed_all = False
        self._slots = 1
        self._coordinator: DriverClient | None = None
        self._warming: list[Any] = []

    # -- the feeder's thread ---------------------------------------------------------------

    def start_feeding(self) -> None:
        self._feeder.start()

    def stop_feeding(self) -> None:
        self._stop.set()
        self._engine_ready.set()
        self._room.release()
        if self._leave_by is None:
            self._leave_by = time.monotonic() + _LEAVE_SECONDS
        if self._feeder.ident is not None:
            self._feeder.join(timeout=max(0.0, self._leave_by - time.monotonic()))

    def _feed(self) -> None:
        try:
            for id, spec in enumerate(self._specs):
                self._room.acquire()
                if self._stop.is_set():
                    return
                self._feed_one(id, spec)
                if self._stop.is_set():
                    return
            self._engine_ready.wait()
            if not self._stop.is_set():
                self._engine.finish_submitting()
            self._fed.put(None)
        except BaseException as e:  # a sys.exit() of a user's code, too: nobody else would hear it
            self._fed.put(e)

    def _feed_one(self, id: int, spec: BatchSpec) -> None:
        task = FileTask(id, spec, self._context)
        self._progress.files_total += 1
        try:
            job, chunks = task.prepare(self._check, self._stop)
        except Exception as e:
            self._fed.put((task, e))
            return
        # The main thread must know the task before its first report can come in.
        self._fed.put((task, None))
        self._engine_ready.wait()
        if not self._stop.is_set() and chunks:
            self._engine.submit(job, chunks)

    def _check(self, contract: RowContract, source: ScannedSource) -> Iterator[ChunkCheck]:
        return check_in_parallel(
            contract,
            [f.text for f in source.files],
            source.chunks,
            lambda: None if self._coordinator is None else (self._coordinator, self._slots),
            self._stop,
        )

    # -- the caller's thread ---------------------------------------------------------------

    def start_early(self, first: BatchSpec, engine: str) -> None:
        from sheaf_dagster.batch.ray.client import start_coordinator
        from sheaf_dagster.batch.ray.startup import warm_up

        self._slots = worker_slots(self._context.spec, first, self._config)
        self._coordinator = start_coordinator(
            self._slots,
            self._context.spec.backend,
            idle_seconds=_IDLE_SECONDS if first.compute == "tasks" else None,
        )
        # Ray gives actors processes of their own, and plain tasks are as early themselves.
        if first.compute == "tasks" and engine == "ray_data":
            self._warming = warm_up(self._context, self._slots)

    def start_engine(self, first: BatchSpec, engine: str, pool: Any) -> None:
        from sheaf_dagster.batch.ray.workforce import RayEngine, Workers

        coordinator = self._coordinator
        assert coordinator is not None
        workers = Workers(
            self._context, first, self._config, self._slots, coordinator.for_workers(), pool
        )
        if engine == "ray_data":
            from sheaf_dagster.batch.ray.data_workers import run_on_ray_data

            self._engine = RayEngine(workers, coordinator, run_on_ray_data, "Ray Data")
        else:
            from sheaf_dagster.batch.ray.core_workers import run_on_ray_core

            self._engine = RayEngine(workers, coordinator, run_on_ray_core, "Ray")
        self._engine_ready.set()

    def shutdown(self) -> None:
        """Stops everything; what is not committed keeps its parts for a rerun."""
        self._stop.set()
        if self._engine is not None:
            self._engine.shutdown()
        self._commits.shutdown(wait=True, cancel_futures=True)

    def abandon(self) -> None:
        """Gives the sinks of unfinished files free, once nothing works on them any more."""
        unseen = []
        while not self._fed.empty():
            item = self._fed.get()
            if isinstance(item, tuple):
                unseen.append(item[0])
        for task in (*self._running.values(), *self._committing.values(), *unseen):
            task.abandon()
        with ThreadPoolExecutor(_COMMIT_THREADS, thread_name_prefix="sheaf-sweep") as pool:
            list(pool.map(lambda d: d[0].sweep(d[1]), self._discarded))

    def outcomes(self) -> Iterator[BatchOutcome]:
        while True:
            yield from self._take_fed()
            yield from self._take_commits()
            if self._fed_all and not self._running and not self._committing:
                self._progress.tick((), force=True)
                return
            if self._fed_all and not self._running:
                # All chunks are in: what has become of the workers is no matter any more.
                wait(self._committing, timeout=0.1, return_when=FIRST_COMPLETED)
            else:
                for report in self._engine.poll(0.02 if self._committing else 0.1):
                    yield from self._take_fed()
                    yield from self._take_report(report)
                if self._engine.over is not None and self._running:
                    raise self._engine.over
            self._progress.tick([*self._running.values(), *self._committing.values()])

    def _take_fed(self) -> Iterator[BatchOutcome]:
        while True:
            try:
                item = self._fed.get_nowait()
            except queue.Empty:
                return
            if item is None:
                self._fed_all = True
            elif isinstance(item, BaseException):
                raise item
            else:
                task, error = item
                if error is not None:
                    yield self._failed(task, error)
                else:
                    self._running[task.id] = task
                    self._commit_if_complete(task)

    def _take_report(self, report: ChunkReport) -> Iterator[BatchOutcome]:
        task = self._running.get(report.job)
        if task is None:
            return  # a late chunk of a file that failed
        try:
            task.take(report)
        except Exception as e:
            del self._running[task.id]
            self._engine.cancel(task.id)
            yield self._failed(task, e)
        else:
            self._commit_if_complete(task)

    def _commit_if_complete(self, task: FileTask) -> None:
        if task.complete:
            del self._running[task.id]
            self._committing[self._commits.submit(task.commit)] = task

    def _take_commits(self) -> Iterator[BatchOutcome]:
        for future in [f for f in self._committing if f.done()]:
            task = self._committing.pop(future)
            try:
                result = future.result()
            except Exception as e:
                yield self._failed(task, e)
            else:
                self._ended(task)
                yield BatchOutcome(spec=task.spec, result=result)

    def _failed(self, task: FileTask, error: Exception) -> BatchOutcome:
        task.abandon()
        if not task.may_resume:
            # Workers may yet write what they have in hand.
            self._discarded.append((task.sink, task.fingerprint))
        self._ended(task)
        return BatchOutcome(spec=task.spec, error=error)

    def _ended(self, task: FileTask) -> None:
        self._progress.ended(task)
        self._room.release()
