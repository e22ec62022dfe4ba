"""Doing the next thing while this one runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(source: Iterator[T], ahead: int, tick: float) -> Generator[T | None, None, None]:
    """The same items, produced in a thread, up to ``ahead`` of them before they are asked for.

    While none is ready, a None comes every ``tick`` seconds, so that a caller who has other
    things in hand can see to them. Closing the generator stops the thread; an exception in ``source`` is raised here.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in source:
                if not put(item):
                    return
            put(_End(None))
        except BaseException as e:
            put(_End(e))

    thread = threading.Thread(target=produce, daemon=True, name="sheaf-reader")
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=tick)
            except queue.Empty:
                yield None
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        thread.join()
