"""What runs in a process beside the model's: the stages, but for ``infer``."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Any

from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.worker.beside.errors import as_error
from sheaf_dagster.batch.worker.beside.link import Link, unpickled
from sheaf_dagster.batch.worker.beside.messages import (
    Asks,
    Begin,
    Chunks,
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
from sheaf_dagster.batch.worker.beside.todo import Work
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.batch.worker.memory import keep_freed_memory
from sheaf_dagster.batch.worker.pipeline import run_given

__all__ = ["main"]


def main(descriptor: int) -> None:
    """Works for the process at the other end of a socket, until that is gone."""
    keep_freed_memory()
    link = Link(socket.socket(fileno=descriptor))
    try:
        _Child(link, link.receive()).run()
    except EOFError:
        pass
    except BaseException:
        _give_up(link, traceback.format_exc())
    os._exit(0)  # whatever threads of a library are left


def _give_up(link: Link, why: str) -> None:
    with suppress(OSError):
        link.send(Failed(why))
    os._exit(0)


class _Child:
    def __init__(self, link: Link, start: Start) -> None:
        self._link = link
        self._start = start
        self._model = _RemoteModel(link, start.backend)
        self._loaded = LoadedBackend(
            start.backend,
            start.load_seconds,
            start.ready_at,
            start.digest,
            told_seconds=self._model.taken,
        )
        self._begun: queue.SimpleQueue[Begin] = queue.SimpleQueue()
        self._chunks: queue.SimpleQueue[Chunks] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._variables = set(os.environ)

    def run(self) -> None:
        """Serves one run after the other."""
        root = logging.getLogger()
        root.addHandler(_ToOther(self._link))
        root.setLevel(self._start.log_level)
        threading.Thread(target=self._listen, daemon=True, name="sheaf-link").start()
        self._link.send(Ready())
        while True:
            begin = self._begun.get()
            for name in self._variables - begin.environment.keys():
                os.environ.pop(name, None)
            os.environ.update(begin.environment)
            self._variables = set(begin.environment)
            if begin.budget is not None:
                self._loaded.budgets.hold(begin.budget)
            for report in run_given(
                unpickled(begin.context),
                self._loaded,
                self._todo(),
                self._stopped.is_set,
                threads=self._start.threads,
                bytes_ahead=self._start.bytes_ahead,
            ):
                self._link.send(Report(report))
            self._link.send(Idle())

    def _listen(self) -> None:
        try:
            while True:
                message = self._link.receive()
                if isinstance(message, Outputs):
                    self._model.hear(message)
                elif isinstance(message, Chunks):
                    self._chunks.put(message)
                elif isinstance(message, Stop):
                    self._stopped.set()
                elif isinstance(message, Lowered):
                    self._loaded.budgets.out_of_memory(message.size)
                else:
                    self._stopped.clear()  # that was for a run before
                    self._begun.put(message)
        except EOFError:
            os._exit(0)
        except BaseException:  # something that isn't here can't be read
            _give_up(self._link, traceback.format_exc())

    def _todo(self) -> Iterator[Sequence[Work]]:
        works: dict[int, FileWork] = {}
        while True:
            self._link.send(More())
            few = self._chunks.get()
            if not few.chunks:
                return
            works |= few.works
            yield [(works[file], chunk) for file, chunk in few.chunks]


class _RemoteModel:
    """Asks the other process for ``infer``, in place of a backend's own."""

    def __init__(self, link: Link, backend: Any) -> None:
        self._link = link
        self._backend = backend
        self._numbers = count()
        self._waiting: dict[int, Future[Outputs]] = {}
        self._seconds = 0.0
        backend.infer = self.infer

    def infer(self, prepared: Sequence[Any]) -> Callable[[], Any]:
        """Sends a batch; returns what waits for its outputs."""
        number = next(self._numbers)
        future = self._waiting[number] = Future()
        size = max(max(1, int(self._backend.size(one))) for one in prepared) * len(prepared)
        try:
            self._link.send(Asks(number, [*prepared], size))
        except Exception as e:  # no fault of the rows: they can't be pickled
            _give_up(self._link, f"{type(e).__name__}: {e}")

        def outputs() -> Any:
            told = future.result()
            self._seconds += told.seconds
            if told.error is not None:
                raise as_error(told.error)
            return told.values

        return outputs

    def hear(self, outputs: Outputs) -> None:
        """Takes in the outputs of a batch; in the thread that receives."""
        self._waiting.pop(outputs.number).set_result(outputs)

    def taken(self) -> float:
        """Seconds that the device took for outputs since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _ToOther(logging.Handler):
    """Passes records on, to be logged where the job is."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._link.send(Log(record.name, record.levelno, self.format(record)))
        except OSError:
            pass
        except Exception:
            self.handleError(record)
