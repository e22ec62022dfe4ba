"""The processes beside a model, and how it serves them."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

from sheaf_dagster.batch.messages import ChunkReport, worker_name
from sheaf_dagster.batch.worker.beside.messages import (
    Asks,
    Failed,
    Idle,
    Log,
    More,
    Outputs,
    Ready,
    Report,
    Start,
    Stop,
    told_error,
)
from sheaf_dagster.batch.worker.beside.process import Process, Work, pickled
from sheaf_dagster.batch.worker.beside.todo import Todo
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.gpus import GpuFigures
from sheaf_dagster.batch.worker.memory import free_what_it_holds
from sheaf_dagster.batch.worker.overlap import TICK_SECONDS, TURN_SECONDS, InModelThread

__all__ = ["Pool"]

log = logging.getLogger(__name__)

_AT_ONCE = 4
"""Chunks that a process is given at a time: few, so that all end at about the same time."""


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
    """

    def __init__(self, start: Start, number: int, cpus: int) -> None:
        self._asked: queue.SimpleQueue[tuple[Process, Asks]] = queue.SimpleQueue()
        self._events: deque[tuple[Process, Report | Idle | Failed]] = deque()
        self._wanting: queue.SimpleQueue[Process | None] = queue.SimpleQueue()
        self._ready: set[Process] = set()
        self._idle: set[Process] = set()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="sheaf-outputs")
        self._begun: _Begun | None = None
        self._settled = 0.0
        self.failed: str | None = None
        """Why it can't be used any more."""
        self._processes: list[Process] = []
        self._number = number
        data = pickled(start)
        try:
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
        for process in self._processes:
            process.kill()
        self._sender.shutdown(wait=True, cancel_futures=True)

    def run(
        self,
        files: Files,
        todo: Todo,
        stop: Callable[[], bool],
        in_model_thread: InModelThread,
        goes_on: Callable[[], bool],
    ) -> Iterator[ChunkReport]:
        """Has the processes run chunks; yields the reports. What one that fails had goes back.

        Args:
            files: The files.
            todo: The chunks.
            stop: Whether to end early.
            in_model_thread: Makes a call from the thread of the backend's own calls.
            goes_on: Whether to take more chunks; asked from a thread.
        """
        self._idle.clear()
        self._wanting = queue.SimpleQueue()
        feeder = threading.Thread(
            target=self._feed, args=(files, todo, goes_on), daemon=True, name="sheaf-reader"
        )
        feeder.start()
        for process in self._processes:
            process.begin()
        told_to_stop = False
        try:
            while len(self._idle) < self._number and self.failed is None:
                in_model_thread(partial(self._turn, files))
                yield from files.heard(self._reports(files))
                if not told_to_stop and stop():
                    told_to_stop = True
                    for process in self._processes:
                        process.send(Stop())
        except BaseException:  # or nobody takes the reports any more
            self.close()
            raise
        finally:
            self._wanting.put(None)
            feeder.join()
        yield from files.heard(self._reports(files))
        if self.failed is not None:
            self.close()
            todo.put_back([work for p in self._processes for work in p.held.values()])

    # -- in the threads that hear the processes ------------------------------------------------

    def _hear(self, process: Process, message: Any) -> None:
        if isinstance(message, Asks):
            self._asked.put((process, message))
        elif isinstance(message, More):
            self._wanting.put(process)
        elif isinstance(message, Ready):
            self._ready.add(process)
        elif isinstance(message, Log):
            logging.getLogger(message.name).log(message.level, "%s", message.message)
        elif isinstance(message, Failed):
            self.failed = self.failed or message.why
        else:
            self._events.append((process, message))
            if isinstance(message, Idle):
                self._idle.add(process)

    # -- in the thread that reads -------------------------------------------------------------

    def _feed(self, files: Files, todo: Todo, goes_on: Callable[[], bool]) -> None:
        while (process := self._wanting.get()) is not None:
            few: list[Work] = []
            while not few and goes_on() and (taken := todo.take(_AT_ONCE)) is not None:
                few = [(work, chunk) for work, chunk in taken if not files.has_failed(work)]
            process.give(few)

    # -- in the thread of the model --------------------------------------------------------------

    def _turn(self, files: Files) -> None:
        """Serves the processes for a moment."""
        until = perf_counter() + TURN_SECONDS
        while perf_counter() < until and self.failed is None:
            try:
                process, asked = self._asked.get(timeout=0 if self._begun else TICK_SECONDS)
            except queue.Empty:
                if self._begun is None and len(self._idle) == self._number:
                    return
                self._settle(files)
                continue
            self._infer(files, process, asked)

    def _infer(self, files: Files, process: Process, asked: Asks) -> None:
        """Has the device begin with a batch; takes the one before it."""
        started = perf_counter()
        try:
            values = files.loaded.backend.infer(asked.prepared)
        except Exception as e:
            free_what_it_holds(e)
            self._settle(files)
            self._reply(
                process, Outputs(asked.number, None, perf_counter() - started, told_error(e))
            )
            return
        if callable(values):
            self._settle(files)
            self._begun = _Begun(process, asked, values, started)
            return
        ended = perf_counter()
        self._settle(files)
        self._done(files, process, asked, values, ended - started)

    def _settle(self, files: Files) -> None:
        """Waits for the batch that was begun last, if there is one."""
        if self._begun is None:
            return
        process, asked, end, started = self._begun
        self._begun = None
        try:
            values = end()
        except Exception as e:
            free_what_it_holds(e)
            self._reply(
                process, Outputs(asked.number, None, perf_counter() - started, told_error(e))
            )
            return
        finally:
            # The device was its own from when it was done with the one before.
            started, self._settled = max(started, self._settled), perf_counter()
        self._done(files, process, asked, values, self._settled - started)

    def _done(
        self, files: Files, process: Process, asked: Asks, values: Any, seconds: float
    ) -> None:
        files.loaded.meter.add(asked.size, seconds)
        self._reply(process, Outputs(asked.number, values, seconds))

    def _reply(self, process: Process, outputs: Outputs) -> None:
        def reply() -> None:
            try:
                process.send(outputs)
            except Exception as e:  # they can't be pickled
                self.failed = self.failed or f"{type(e).__name__}: {e}"

        self._sender.submit(reply)

    # -- in the thread that passes reports on -------------------------------------------------------

    def _reports(self, files: Files) -> Iterator[ChunkReport]:
        while self._events:
            process, event = self._events.popleft()
            if isinstance(event, Report):
                report = event.report
                process.held.pop((report.file, report.chunk), None)
                seen = files.loaded.gpus.take() if files.loaded.gpus else GpuFigures()
                yield replace(
                    report,
                    worker=worker_name(),
                    gpu_samples=seen.samples,
                    gpu_utilisation=seen.utilisation,
                    gpu_memory_bytes=seen.memory_bytes,
                )
