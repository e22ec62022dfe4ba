"""The driver of a job: one loop that hears of everything from one inbox.

::

    feeder ── Settled, Prepared, Failed, AllFed, Broke ──▶ ┌───────┐
    workforce ── Reported, WorkFailed, Waiting, Ended ───▶ │ inbox │ ──▶ loop ──▶ outcomes, progress
    commits ── Committed, Failed ────────────────────────▶ └───────┘

The feeder, a thread, takes the caller's files one after the other, scans and validates each, and
submits its chunks. The workforce runs them: on Ray, or in this process. A file whose last chunk
is in is committed by a small pool. All that the caller sees comes from the caller's thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.events import (
    AllFed,
    Broke,
    Committed,
    Ended,
    Event,
    Failed,
    Prepared,
    Reported,
    Settled,
    WorkFailed,
)
from sheaf_dagster.batch.file_run import FileRun
from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.meter import ProgressMeter
from sheaf_dagster.batch.results import BatchOutcome, BatchProgress
from sheaf_dagster.batch.reuse.previous import reused_output
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.spending import Spending
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.batch.worker.memory import keep_freed_memory
from sheaf_dagster.batch.workforce import Workforce

__all__ = ["run_job"]

_COMMIT_THREADS = 4

_TICK_SECONDS = 0.5
"""How often progress is told and the workforce looked after while nothing happens."""

_LEAVE_SECONDS = 60.0
"""How long the feeder is waited for, which may be in the middle of its caller's iterator."""


def run_job(
    context: ModelContext,
    files: Iterable[BatchSpec | BatchOutcome],
    workforce: Workforce,
    on_progress: Callable[[BatchProgress], None] | None,
    committed: Mapping[str, CommittedSink],
) -> Iterator[BatchOutcome]:
    """Runs files; see ``BatchRunner.run_many``.

    Args:
        context: The model.
        files: Those to run, and the outcomes of others, which are handed on in between.
        workforce: Who runs their chunks.
        on_progress: Called as the job goes on.
        committed: By sink what is known of an earlier output.
    """
    keep_freed_memory()
    driver = _Driver(context, files, workforce, on_progress, committed)
    with ExitStack() as stack:  # done from the last to the first
        stack.callback(driver.abandon)
        stack.callback(workforce.close)
        # Whatever the feeder asks of a Ray that is down starts another one.
        stack.callback(driver.stop_feeding)
        stack.callback(driver.stop_committing)
        stack.callback(workforce.stop)
        yield from driver.outcomes()


class _Driver:
    def __init__(
        self,
        context: ModelContext,
        files: Iterable[BatchSpec | BatchOutcome],
        workforce: Workforce,
        on_progress: Callable[[BatchProgress], None] | None,
        committed: Mapping[str, CommittedSink],
    ) -> None:
        self._context = context
        self._committed = committed
        self._files = files
        self._workforce = workforce
        self._progress = ProgressMeter(on_progress)
        self._spending = Spending()
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._feeder = threading.Thread(target=self._feed, daemon=True, name="sheaf-feeder")
        self._room = threading.Semaphore(workforce.files_ahead)
        self._open = threading.Event()
        self._stop = threading.Event()
        self._commits = ThreadPoolExecutor(_COMMIT_THREADS, thread_name_prefix="sheaf-commit")
        self._ends: dict[str, threading.Event] = {}
        """By sink, of the files under way: set once the file is committed or has failed."""
        self._running: dict[int, FileRun] = {}
        self._committing: dict[int, FileRun] = {}
        self._sweeps: list[Callable[[], None]] = []
        self._fed_all = False
        self._ended: Exception | None = None

    # -- the feeder's thread ---------------------------------------------------------------

    def _feed(self) -> None:
        try:
            for id, file in enumerate(self._files):
                if isinstance(file, BatchOutcome):
                    self._inbox.put(Settled(file))
                else:
                    self._room.acquire()
                    if self._stop.is_set():
                        return
                    self._feed_one(id, file)
                if self._stop.is_set():
                    return
            self._open.wait()
            if not self._stop.is_set():
                self._workforce.no_more_files()
            self._inbox.put(AllFed())
        except BaseException as e:  # a sys.exit() of a user's code, too: nobody else would hear it
            self._inbox.put(Broke(e))

    def _feed_one(self, id: int, spec: BatchSpec) -> None:
        run = FileRun(id, spec, self._context, self._committed.get(spec.sink))
        self._progress.files_total += 1
        self._wait_for_answers(spec)
        self._ends[run.sink.location.uri] = threading.Event()
        try:
            if (over := self._spending.over(spec)) is not None:
                raise over
            work, chunks = run.prepare(
                lambda contract, source: self._workforce.validate(contract, source, self._stop),
                self._stop,
            )
        except Exception as e:
            self._inbox.put(Failed(run, e))
            return
        self._spending.add(spec, run.parts.values())  # those of a killed run
        self._inbox.put(Prepared(run))  # before the first report of it can come in
        self._open.wait()
        if not self._stop.is_set() and chunks and not self._spending.over(spec):
            self._workforce.submit(work, chunks)

    def _wait_for_answers(self, spec: BatchSpec) -> None:
        """Waits for the file of this job whose output a file reuses, as day by day in a backfill."""
        output = reused_output(spec) if spec.only is None else None
        ended = None if output is None else self._ends.get(output.uri)
        while ended is not None and not (ended.wait(_TICK_SECONDS) or self._stop.is_set()):
            pass

    # -- the caller's thread ---------------------------------------------------------------

    def outcomes(self) -> Iterator[BatchOutcome]:
        if self._workforce.surely_opens:
            self._feeder.start()
        self._workforce.open()
        self._open.set()
        if self._feeder.ident is None:
            self._feeder.start()
        self._workforce.start(self._inbox.put)
        while self._running or self._committing or not self._fed_all:
            yield from self._after(self._next_event())
            if self._ended is not None and self._running:
                raise self._ended
            self._tick()
        self._tick(force=True)

    def _next_event(self) -> Event:
        while True:
            # Once all chunks are in, what becomes of the workers is no matter any more.
            matters = self._running or not self._fed_all
            more = self._workforce.look() if matters and self._ended is None else False
            try:
                return self._inbox.get(block=not more, timeout=_TICK_SECONDS)
            except queue.Empty:
                self._tick()

    def _after(self, event: Event) -> Iterator[BatchOutcome]:
        match event:
            case Settled(outcome):
                yield outcome
            case Prepared(run):
                self._running[run.id] = run
                self._commit_if_complete(run)
                yield from self._end_if_spent()
            case Reported(report):
                if report.file in self._running:  # else a late chunk of a file that failed
                    yield from self._take(self._running[report.file], report)
            case Committed(run, result):
                del self._committing[run.id]
                self._file_ended(run)
                yield BatchOutcome(spec=run.spec, result=result)
            case Failed(run, error):
                yield self._failed(run, error)
            case WorkFailed(file, error):
                yield self._failed(self._running[file], error)
            case AllFed():
                self._fed_all = True
            case Ended(error):
                self._ended = error
            case Broke(error):
                raise error

    def _take(self, run: FileRun, report: ChunkReport) -> Iterator[BatchOutcome]:
        try:
            run.take(report)
        except Exception as e:
            self._workforce.cancel(run.id)
            yield self._failed(run, e)
        else:
            assert report.part is not None
            self._spending.add(run.spec, [report.part])
            self._tick()  # before the commit, while the caller can still see what is to come
            self._commit_if_complete(run)
            yield from self._end_if_spent()

    def _end_if_spent(self) -> Iterator[BatchOutcome]:
        """Ends files that are not complete once the job has spent what it may."""
        for run in list(self._running.values()):
            if (over := self._spending.over(run.spec)) is not None:
                self._workforce.cancel(run.id)
                yield self._failed(run, over)

    def _commit_if_complete(self, run: FileRun) -> None:
        if run.complete:
            self._committing[run.id] = self._running.pop(run.id)
            self._commits.submit(self._commit, run)

    def _commit(self, run: FileRun) -> None:
        """In a thread of its own."""
        try:
            self._inbox.put(Committed(run, run.commit()))
        except Exception as e:
            self._inbox.put(Failed(run, e))
        except BaseException as e:
            self._inbox.put(Broke(e))

    def _failed(self, run: FileRun, error: Exception) -> BatchOutcome:
        self._running.pop(run.id, None)
        self._committing.pop(run.id, None)
        run.abandon()
        if not run.may_resume:
            # Workers may yet write what they have in hand.
            self._sweeps.append(partial(run.sink.sweep, run.fingerprint))
        self._file_ended(run)
        return BatchOutcome(spec=run.spec, error=error)

    def _file_ended(self, run: FileRun) -> None:
        self._progress.ended(run)
        if (ended := self._ends.pop(run.sink.location.uri, None)) is not None:
            ended.set()
        self._room.release()
        # The caller sees how far all is before the last outcome.
        self._tick(force=not (self._running or self._committing))

    def _tick(self, *, force: bool = False) -> None:
        self._progress.tick([*self._running.values(), *self._committing.values()], force=force)

    # -- the end ---------------------------------------------------------------------------

    def stop_committing(self) -> None:
        """Waits for the commits under way; the others keep their parts for a rerun."""
        self._stop.set()
        self._commits.shutdown(wait=True, cancel_futures=True)

    def stop_feeding(self) -> None:
        """Waits until the feeder has left."""
        self._stop.set()
        self._open.set()
        self._room.release()
        if self._feeder.ident is not None:
            self._feeder.join(timeout=_LEAVE_SECONDS)

    def abandon(self) -> None:
        """Gives the sinks of unfinished files free, once nothing works on them any more."""
        unseen = []
        while not self._inbox.empty():
            match self._inbox.get():
                case Prepared(run):
                    unseen.append(run)
                case Failed(run):
                    unseen.append(run)
                case Committed(run):
                    self._committing.pop(run.id, None)
        for run in (*self._running.values(), *self._committing.values(), *unseen):
            run.abandon()
        with ThreadPoolExecutor(_COMMIT_THREADS, thread_name_prefix="sheaf-sweep") as pool:
            list(pool.map(lambda sweep: sweep(), self._sweeps))
