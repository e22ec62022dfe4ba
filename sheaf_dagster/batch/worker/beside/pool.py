"""The processes beside a model, and how it serves them."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

from sheaf_dagster.batch.messages import ChunkReport, worker_name
from sheaf_dagster.batch.worker.beside.errors import told_error
from sheaf_dagster.batch.worker.beside.link import pickled
from sheaf_dagster.batch.worker.beside.messages import (
    Asks,
    Failed,
    Idle,
    Log,
    Lowered,
    More,
    Outputs,
    Ready,
    Report,
    Start,
    Stop,
)
from sheaf_dagster.batch.worker.beside.process import Process
from sheaf_dagster.batch.worker.beside.todo import Todo, Work
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.gpus import GpuFigures
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.batch.worker.memory import (
    free_what_it_holds,
    is_out_of_memory,
    return_cached_memory,
)
from sheaf_dagster.batch.worker.overlap import TICK_SECONDS, TURN_SECONDS, InModelThread

__all__ = ["Pool"]

_AT_ONCE = 4
"""Chunks of a far store that a process is given at a time: few, so that all end at about the same
time."""

_MOST_BYTES = 256 * 2**20
"""A backend that takes more has a model."""


class _Begun(NamedTuple):
    """A batch that the device has begun with."""

    process: Process
    asked: Asks
    end: Callable[[], Any]
    started: float


class Pool:
    """Some processes beside a model.

    A thread for each hears it. The model's thread is asked by a queue, so that it waits for none
    of them where another has a batch ready.

    Args:
        start: What they work with.
        number: How many there are to be.
        cpus: CPUs of each.

    Raises:
        Exception: They can't be started.
    """

    def __init__(self, start: Start, number: int, cpus: int) -> None:
        self.failed: str | None = None
        """Why it can't be used any more."""
        self._number = number
        self._processes: list[Process] = []
        self._ready: set[Process] = set()
        self._idle: set[Process] = set()
        self._asked: queue.SimpleQueue[tuple[Process, Asks]] = queue.SimpleQueue()
        self._wanting: queue.SimpleQueue[Process | None] = queue.SimpleQueue()
        self._giving = threading.Lock()
        self._reported: deque[tuple[Process, ChunkReport]] = deque()
        self._failures: dict[int, ChunkReport] = {}
        """By file, the report of the first chunk that failed, while those before it are made."""
        self._error: BaseException | None = None
        """What the source of the chunks raised."""
        self._begun: _Begun | None = None
        self._settled = 0.0
        self._redact = False
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="sheaf-outputs")
        try:
            data = pickled(start)
            if len(data) > _MOST_BYTES:
                raise ValueError(f"the backend without its model takes {len(data) >> 20} MB")
            for _ in range(number):
                self._processes.append(Process(data, self._hear, cpus))
        except BaseException:
            self.close()
            raise

    @property
    def is_ready(self) -> bool:
        """Whether all processes have started."""
        return len(self._ready) == self._number and self.failed is None

    def close(self) -> None:
        """Ends the processes at once."""
        self.failed = self.failed or "it was closed"
        self._begun = None
        self._wanting.put(None)
        for process in self._processes:
            process.kill()
        self._sender.shutdown(wait=True, cancel_futures=True)

    def run(
        self,
        context: ModelContext,
        files: Files,
        todo: Todo,
        stop: Callable[[], bool],
        in_model_thread: InModelThread,
        goes_on: Callable[[], bool],
    ) -> Iterator[ChunkReport]:
        """Has the processes run chunks; yields the reports. What one that fails had goes back.

        Args:
            context: The model with the contract of the rows.
            files: The files.
            todo: The chunks.
            stop: Whether to end early.
            in_model_thread: Makes a call from the thread of the backend's own calls.
            goes_on: Whether to take more chunks; asked from a thread.
        """
        self._redact = context.rows.redact
        self._idle.clear()
        self._failures.clear()
        self._error = None
        self._wanting = queue.SimpleQueue()
        feeder = threading.Thread(
            target=self._feed,
            args=(files, todo, goes_on, self._wanting),
            daemon=True,
            name="sheaf-reader",
        )
        feeder.start()
        sent, budget = pickled(context), files.loaded.budgets.ceiling
        for process in self._processes:
            process.begin(sent, budget)
        told_to_stop = False
        while len(self._idle) < self._number and self.failed is None:
            in_model_thread(partial(self._turn, files))
            yield from files.heard(self._reports(files))
            if self._error is not None:
                raise self._error
            if not told_to_stop and stop():
                told_to_stop = True
                for process in self._processes:
                    process.send(Stop())
        self._wanting.put(None)
        if self.failed is None:
            feeder.join()  # it has said to all that there are no more
        yield from files.heard([*self._reports(files), *self._failures.values()])
        with self._giving:
            held = [work for process in self._processes for work in process.held.values()]
        left = [work for work in held if not files.has_failed(work[0])]
        if left and not told_to_stop:
            self.failed = self.failed or "it left rows unanswered"
        if self.failed is not None:
            self.close()
            # One that was given chunks since then has put them back itself.
            todo.put_back(left)

    # -- in the threads that hear the processes ------------------------------------------------

    def _hear(self, process: Process, message: Any) -> None:
        if isinstance(message, Asks):
            self._asked.put((process, message))
        elif isinstance(message, More):
            self._wanting.put(process)
        elif isinstance(message, Report):
            self._reported.append((process, message.report))
        elif isinstance(message, Idle):
            self._idle.add(process)
        elif isinstance(message, Ready):
            self._ready.add(process)
        elif isinstance(message, Log):
            logging.getLogger(message.name).log(message.level, "%s", message.message)
        elif isinstance(message, Failed):
            self.failed = self.failed or message.why

    # -- in the thread that reads -------------------------------------------------------------

    def _feed(
        self,
        files: Files,
        todo: Todo,
        goes_on: Callable[[], bool],
        wanting: queue.SimpleQueue[Process | None],
    ) -> None:
        try:
            while (process := wanting.get()) is not None and self.failed is None:
                given = False
                while not given and goes_on():
                    with todo.lent(_AT_ONCE) as taken:
                        if taken is None:
                            break
                        few = [work for work in taken if not self._is_lost(files, work)]
                        given = bool(few) and self._give(process, few, todo)
                if not given:
                    process.give(())
        except BaseException as e:
            self._error = e

    def _give(self, process: Process, few: Sequence[Work], todo: Todo) -> bool:
        """Gives chunks to a process, or back where they would be lost."""
        with self._giving:
            if self.failed is None:
                process.give(few)
            else:
                todo.put_back(few)
        return True

    def _is_lost(self, files: Files, work: Work) -> bool:
        return work[0].id in self._failures or files.has_failed(work[0])

    # -- in the thread of the model --------------------------------------------------------------

    def _turn(self, files: Files) -> None:
        """Serves the processes for a moment, or until there is nothing to do."""
        until = perf_counter() + TURN_SECONDS
        while perf_counter() < until and self.failed is None:
            try:
                process, asked = self._asked.get(timeout=0 if self._begun else TICK_SECONDS)
            except queue.Empty:
                if self._begun is None:
                    return
                self._settle(files)
            else:
                self._infer(files, process, asked)

    def _infer(self, files: Files, process: Process, asked: Asks) -> None:
        """Has the device begin with a batch; takes the one before it."""
        started = perf_counter()
        values, error = None, None
        try:
            values = files.loaded.backend.infer(asked.prepared)
        except Exception as e:
            error = e
        seconds = perf_counter() - started
        self._settle(files)
        if error is not None:
            self._reply_error(files, process, asked, error, seconds)
        elif callable(values):
            self._begun = _Begun(process, asked, values, started)
        else:
            self._done(files, process, asked, values, seconds)

    def _settle(self, files: Files) -> None:
        """Waits for the batch that was begun last, if there is one."""
        if self._begun is None:
            return
        process, asked, end, started = self._begun
        self._begun = None
        values, error = None, None
        try:
            values = end()
        except Exception as e:
            error = e
        # The device was its own from when it was done with the one before.
        started, self._settled = max(started, self._settled), perf_counter()
        seconds = self._settled - started
        if error is not None:
            self._reply_error(files, process, asked, error, seconds)
        else:
            self._done(files, process, asked, values, seconds)

    def _done(
        self, files: Files, process: Process, asked: Asks, values: Any, seconds: float
    ) -> None:
        files.loaded.meter.add(asked.size, seconds)
        self._reply(process, Outputs(asked.number, values, seconds))

    def _reply_error(
        self, files: Files, process: Process, asked: Asks, error: Exception, seconds: float
    ) -> None:
        free_what_it_holds(error)
        told = told_error(error, redact=self._redact)
        if is_out_of_memory(error):
            return_cached_memory()
            if len(asked.prepared) > 1:
                files.loaded.budgets.out_of_memory(asked.size)
                for other in self._processes:
                    if other is not process:  # that finds out by halving
                        self._sender.submit(other.send, Lowered(asked.size))
        self._reply(process, Outputs(asked.number, None, seconds, told))

    def _reply(self, process: Process, outputs: Outputs) -> None:
        def reply() -> None:
            try:
                process.send(outputs)
            except Exception as e:  # they can't be pickled
                self.failed = self.failed or f"{type(e).__name__}: {e}"

        self._sender.submit(reply)

    # -- in the thread that passes reports on -------------------------------------------------------

    def _reports(self, files: Files) -> Iterator[ChunkReport]:
        while self._reported:
            process, report = self._reported.popleft()
            process.held.pop((report.file, report.chunk), None)
            seen = files.loaded.gpus.take() if files.loaded.gpus else GpuFigures()
            report = replace(
                report,
                worker=worker_name(),
                processes=self._number,
                gpu_samples=seen.samples,
                gpu_utilisation=seen.utilisation,
                gpu_memory_bytes=seen.memory_bytes,
            )
            if report.failure is None:
                yield report
            else:
                # It has passed over the chunks of that file that it has still got.
                for key in [key for key in process.held if key[0] == report.file]:
                    process.held.pop(key, None)
                first = self._failures.get(report.file, report)
                self._failures[report.file] = min(first, report, key=lambda one: one.chunk)
        # Which row of a file is the first that fails is known once none before it is under way.
        for file, report in [*self._failures.items()]:
            if not any(
                held == file and chunk < report.chunk
                for process in self._processes
                for held, chunk in [*process.held]
            ):
                yield report  # again and again: whoever hears it passes it on once
