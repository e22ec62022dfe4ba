"""Where a staged backend's rows are prepared: in threads, or in processes beside the model's.

Threads share one interpreter lock with the model's own. Where they hold it for long, the device waits,
or is told later what to do. Other processes do not, but start slowly, and what they prepare must
be sent. So a worker begins with threads, and measures. Where threads take a share of a CPU that is
worth it, processes are started meanwhile and tried; the worker keeps what was faster.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import NamedTuple

from sheaf_dagster.backends.base import without_model
from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.worker.beside.messages import Start
from sheaf_dagster.batch.worker.beside.pool import Pool
from sheaf_dagster.batch.worker.beside.todo import Todo
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.loading import LoadedBackend, ModelContext
from sheaf_dagster.batch.worker.overlap import InModelThread, cpu_seconds
from sheaf_dagster.batch.worker.preparing import BYTES_AHEAD
from sheaf_dagster.storage import store_at

__all__ = ["Beside"]

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LOOK_BATCHES = 8
"""For so long, and so many batches, threads are looked at before processes are started."""
_WORTH = 0.03
"""Of a CPU; what threads take less than that can't be gained."""
_RESERVE = 1.5
"""By how much there are more processes than would be needed on average."""
_TRY_SECONDS = 1.5
"""For so long processes are tried, from when the first batches have come."""
_SETTLE_SECONDS = 0.3
_WORSE, _MUCH_WORSE = 0.95, 0.75
"""Processes go if their rate is less than this part of the threads'. In between it may be noise of a
shared machine, so that both are measured again."""
_TRIES = 3


class _Look(NamedTuple):
    """What there was at a moment."""

    at: float
    cpu_seconds: float | None
    """Of the threads beside the model's own."""
    size: float
    """Of all that the device has done."""
    busy: float
    """Seconds in which it has."""
    batches: int

    def rate_since(self, before: _Look) -> float:
        """What the device did a second."""
        return (self.size - before.size) / (self.at - before.at)


class Beside:
    """The processes beside one loaded model, if there are any, and whether they pay.

    Args:
        context: The model and its contract.
        loaded: Its backend.
        cpus: CPUs of this worker.
    """

    def __init__(self, context: ModelContext, loaded: LoadedBackend, cpus: int) -> None:
        self._context = context
        self._loaded = loaded
        self._cpus = cpus
        self._used = threading.Lock()
        self._pool: Pool | None = None
        self._starting: threading.Thread | None = None
        self._refused = cpus < 2
        self._kept = False
        """Whether they were no slower."""
        self._since: _Look | None = None
        self._rate_of_threads: float | None = None
        self._first = 0
        """Batches before this run."""
        self._tries = 0
        self._tried = 0.0
        """When processes were first given chunks."""

    def close(self) -> None:
        """Ends the processes."""
        self._refused = True
        if self._starting is not None:
            self._starting.join()
        if self._pool is not None:
            self._pool.close()

    def run(
        self,
        context: ModelContext,
        files: Files,
        todo: Todo,
        stop: Callable[[], bool],
        in_model_thread: InModelThread,
        in_threads: Callable[[Callable[[], bool]], Iterator[ChunkReport]],
    ) -> Iterator[ChunkReport]:
        """Runs chunks; yields the reports.

        Args:
            context: The model with the contract of these rows.
            files: The files.
            todo: The chunks.
            stop: Whether to end early.
            in_model_thread: Makes a call from the thread of the backend's own calls.
            in_threads: Runs chunks with threads alone, until it is enough.
        """
        # One run at a time: another that shares the model goes on with threads.
        if self._refused or not _fits(todo) or not self._used.acquire(blocking=False):
            yield from in_threads(lambda: False)
            return
        try:
            self._since, self._first = None, self._look().batches
            if not self._kept:  # these rows may be others
                self._rate_of_threads = None
            while not (todo.is_done or stop()):
                if self._is_ready and self._rate_of_threads is not None:
                    yield from self._in_processes(context, files, todo, stop, in_model_thread)
                else:
                    yield from in_threads(self._is_enough)
        finally:
            self._used.release()

    @property
    def _is_ready(self) -> bool:
        return not self._refused and self._pool is not None and self._pool.is_ready

    # -- with threads, in the one that reads ----------------------------------------------------------

    def _is_enough(self) -> bool:
        """Whether processes take over from here; has them started where they may pay."""
        if not self._refused and self._pool is not None and self._pool.failed is not None:
            self._give_up(self._pool.failed)
        if self._rate_of_threads is None and not self._refused:
            self._consider()
        return self._is_ready and self._rate_of_threads is not None

    def _consider(self) -> None:
        now, before = self._look(), self._since
        if before is None or before.batches == self._first:  # until then the device is idle
            self._since = now
            return
        seconds = now.at - before.at
        if seconds < _LOOK_SECONDS or now.batches - before.batches < _LOOK_BATCHES:
            return
        if now.cpu_seconds is None or before.cpu_seconds is None:  # not on this system
            self._refused = True
            return
        share = (now.cpu_seconds - before.cpu_seconds) / seconds
        busy = (now.busy - before.busy) / seconds
        self._since = now
        if share < _WORTH:
            return
        self._rate_of_threads = now.rate_since(before)
        if self._starting is None:
            needed = math.ceil(_RESERVE * share / max(busy, 0.05))
            self._starting = threading.Thread(
                target=self._start,
                args=(min(self._cpus, needed),),
                daemon=True,
                name="sheaf-starter",
            )
            self._starting.start()

    def _start(self, number: int) -> None:
        loaded, each = self._loaded, max(1, self._cpus // number)
        try:
            backend = without_model(loaded.backend)
            if backend is None:
                self._refused = True
                return
            start = Start(
                context=self._context,
                backend=backend,
                load_seconds=loaded.load_seconds,
                ready_at=loaded.ready_at,
                digest=loaded.digest,
                threads=max(each, (backend.prepare_threads or 0) // number),
                bytes_ahead=BYTES_AHEAD // number,
                log_level=logging.getLogger().getEffectiveLevel(),
            )
            self._pool = Pool(start, number, each)
        except Exception as e:
            self._give_up(f"{type(e).__name__}: {e}")

    def _give_up(self, why: str) -> None:
        if self._pool is not None:
            self._pool.close()
        if not self._refused:
            self._refused = True
            log.info(
                "model %r: its rows are prepared by threads; processes can't be used: %s",
                self._context.spec.name,
                why,
            )

    def _look(self) -> _Look:
        return _Look(perf_counter(), cpu_seconds(), *self._loaded.meter.found())

    # -- with processes -------------------------------------------------------------------------------

    def _in_processes(
        self,
        context: ModelContext,
        files: Files,
        todo: Todo,
        stop: Callable[[], bool],
        in_model_thread: InModelThread,
    ) -> Iterator[ChunkReport]:
        pool = self._pool
        assert pool is not None
        self._since = None
        try:
            yield from pool.run(
                context,
                files,
                todo,
                stop,
                in_model_thread,
                lambda: not stop() and self._is_better(),
            )
        except BaseException:  # the run was given up
            pool.close()
            self._pool = self._starting = self._rate_of_threads = None
            raise
        self._since = None
        if pool.failed is not None:
            self._refused = True
            log.warning(
                "model %r: a process that prepares its rows failed, so threads do it from here on. "
                "The rows that the process had are run again. %s",
                self._context.spec.name,
                pool.failed,
            )
        if self._refused:
            pool.close()

    def _is_better(self) -> bool:
        """Whether processes go on: are no slower, as far as is known. In the pool's reader."""
        if self._kept or self._rate_of_threads is None:
            return self._kept
        now = self._look()
        if self._since is None:
            self._since, self._tried = now, now.at
        if now.at - self._tried < _SETTLE_SECONDS:
            self._since = now
        elif (
            now.at - self._since.at > _TRY_SECONDS
            and now.batches - self._since.batches >= _LOOK_BATCHES
        ):
            self._decide(now.rate_since(self._since) / self._rate_of_threads)
        return self._rate_of_threads is not None and not self._refused

    def _decide(self, ratio: float) -> None:
        """Draws the conclusion from the rate of processes over that of threads."""
        self._tries += 1
        self._kept = ratio >= _WORSE
        self._refused = not self._kept and (ratio < _MUCH_WORSE or self._tries == _TRIES)
        if not (self._kept or self._refused):
            self._rate_of_threads = None  # is measured again
            return
        log.info(
            "model %r: rows are prepared by %s; processes have %.2f times the rate of threads",
            self._context.spec.name,
            "processes" if self._kept else "threads",
            ratio,
        )


def _fits(todo: Todo) -> bool:
    """Whether other processes see the next chunks, and know their batches without the device."""
    return all(
        work.batch_timeout is None
        and (isinstance(work.batch_budget, int) if work.batch_budget else work.batch_size)
        and all(store_at(one).known_elsewhere for one in (*work.texts, work.store.folder))
        for work, _ in todo.peek()
    )
