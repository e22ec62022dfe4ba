"""Interrupts that come while an event is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupts_wait"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Lets Ctrl-C and a termination wait until the block, or the decorated function, has ended.

    Python drops an exception that is raised in the callback of a weak reference or in a
    finaliser, so it drops the interrupt that a signal's handler raises there. SQLAlchemy, which
    writes Dagster's events, has many such callbacks: every second interrupt that came while a
    file was recorded was lost, and the run went on. An event is also written whole this way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of its business
        return
    caught: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda *call: caught.append(call))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        for came, frame in caught[:1]:
            handler = before[signal.Signals(came)]
            assert callable(handler)
            handler(came, frame)
