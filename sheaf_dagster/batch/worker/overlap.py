"""Doing the next thing while this one runs: threads beside the one that has the device."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from time import perf_counter
from typing import Any, Generic, Protocol, Self, TypeVar

from sheaf_dagster.batch.worker.model_thread import raise_in

__all__ = [
    "TICK_SECONDS",
    "TURN_SECONDS",
    "Behind",
    "Helpers",
    "InModelThread",
    "Prefetched",
    "cpu_seconds",
    "in_turns",
]

T = TypeVar("T")

TICK_SECONDS = 0.02
"""While nothing is ready, a caller sees to other things this often."""

TURN_SECONDS = 0.25
"""About how long a thread of the model's own is kept at a time: it may have other jobs."""


def cpu_seconds() -> float | None:
    """CPU time that the threads of this module have taken so far; None where nobody knows.

    Of threads that have ended nothing is known any more.
    """
    found = 0
    for thread in threading.enumerate():
        if thread.name.startswith(_NAMES) and thread.native_id is not None:
            try:
                with open(f"/proc/self/task/{thread.native_id}/schedstat") as f:
                    found += int(f.read().split()[0])
            except FileNotFoundError:
                if not sys.platform.startswith("linux"):
                    return None
            except (OSError, ValueError, IndexError):
                return None
    return found / 1e9


class InModelThread(Protocol):
    """Makes a call from the thread that a backend's own calls come from."""

    def __call__(self, call: Callable[[], T], /) -> T:
        """The call's value."""
        ...


_READER, _WRITER, _PREPARE = _NAMES = ("sheaf-reader", "sheaf-writer", "sheaf-prepare")


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetched(Generic[T]):
    """The items of an iterator, made in a thread, some of them before they are asked for.

    A context manager; leaving it stops the thread.
    """

    def __init__(self, source: Iterator[T], ahead: int) -> None:
        self.ended = False
        """Whether the last item has been taken."""
        self._source = source
        self._ready: queue.Queue[T | _End] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, daemon=True, name=_READER)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _produce(self) -> None:
        try:
            for item in self._source:
                if not self._put(item):
                    return
            self._put(_End(None))
        except BaseException as e:
            self._put(_End(e))

    def _put(self, item: T | _End) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def take(self, seconds: float = TICK_SECONDS) -> T | None:
        """The next item; None where there is none within so many seconds, or none any more.

        What the iterator raises is raised here.
        """
        if self.ended:
            return None
        try:
            item = self._ready.get(timeout=seconds) if seconds else self._ready.get_nowait()
        except queue.Empty:
            return None
        if not isinstance(item, _End):
            return item
        self.ended = True
        if item.error is not None:
            raise item.error
        return None


def in_turns(
    in_model_thread: InModelThread, steps: Iterator[Sequence[T]], stop: Callable[[], bool]
) -> Iterator[T]:
    """Takes steps in the model's own thread, some at a time; yields what they gave.

    Handing each to that thread would cost milliseconds of it: a thread that has waited comes after
    those that run Python code.

    Args:
        in_model_thread: Makes a call from that thread.
        steps: What each gives.
        stop: Whether to take no more of them.
    """

    def turn() -> tuple[list[T], bool, BaseException | None]:
        until = perf_counter() + TURN_SECONDS
        found: list[T] = []
        try:
            for given in steps:
                found += given
                if stop() or perf_counter() > until:
                    return found, True, None
        except BaseException as e:
            return found, False, e
        return found, False, None

    more = True
    while more and not stop():
        found, more, error = in_model_thread(turn)
        yield from found
        if error is not None:
            raise error


class Behind(Generic[T]):
    """One thread that finishes what is handed to it, in order; a context manager."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=_WRITER)
        self._futures: deque[Future[T]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __bool__(self) -> bool:
        return bool(self._futures)

    def hand(self, call: Callable[[], T]) -> None:
        """Has something done."""
        self._futures.append(self._thread.submit(call))

    def done(self) -> Iterator[T]:
        """What has been done, in order; waits where more than ``most`` are not."""
        while self._futures and (self._futures[0].done() or len(self._futures) > self._most):
            yield self._futures.popleft().result()

    def wait(self) -> None:
        """Waits until all has been done that was handed over."""
        wait(self._futures)

    def rest(self) -> Iterator[T]:
        """All that is still to be done."""
        while self._futures:
            yield self._futures.popleft().result()


class Helpers:
    """Threads that do small things ahead; none of them holds up the end of the process.

    A context manager; leaving it lets go of what has not begun.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        for thread in self._threads:
            thread.join()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Has something done by the next thread that is free."""
        future: Future[T] = Future()
        with self._lock:
            self._tasks.put((future, call))
        return future

    def replace(self) -> None:
        """Goes on with new threads where the old ones hang; what waits for them is cancelled."""
        with self._lock:
            self._end()
            for thread in self._threads:
                if thread.is_alive():
                    raise_in(thread, SystemExit)
            self._begin()

    def _begin(self) -> None:
        tasks = self._tasks = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_help, args=(tasks,), daemon=True, name=f"{_PREPARE}-{i}")
            for i in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    def _end(self) -> None:
        with suppress(queue.Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)


_Task = tuple["Future[Any]", Callable[[], Any]]


def _help(tasks: queue.SimpleQueue[_Task | None]) -> None:
    with suppress(SystemExit):  # interrupted: nobody waits for it
        while (task := tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except Exception as e:
                future.set_exception(e)
