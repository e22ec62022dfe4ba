"""Stopping a backend that doesn't come back (``batch_timeout``).

No thread can be killed, only a process. On Ray the worker says what hung and ends itself, and
the chunk goes to another one. In the driver's own process the call is interrupted where it runs
Python code, and left behind with its thread and its backend where it doesn't (``ModelThread``).

A library that keeps the interpreter locked can't be stopped there: threads, signal handlers and
exceptions all wait for the lock, and the timers that don't (``faulthandler``, a default ``SIGALRM``)
can only end the whole process, which is the user's.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from sheaf_dagster.batch.rows.row import Row, named_lines

__all__ = [
    "MAX_IN_A_ROW",
    "TimeLimit",
    "WorkerLimit",
    "took_too_long",
]

T = TypeVar("T")

MAX_IN_A_ROW = 4
"""So many rows that hang one after the other mean that the backend hangs whatever it is given."""

_GRACE_SECONDS = 3.0
"""A process whose interpreter is stuck too, and can't report what hung, ends this much later."""


class TimeLimit(Protocol):
    """Makes one call of a backend for some rows, within a time."""

    def __call__(self, rows: Sequence[Row], call: Callable[[], T]) -> T:
        """The call's value; a call that takes too long doesn't come back, or raises."""
        ...


def took_too_long(where: str, rows: Sequence[Row], backend: str, seconds: float) -> str:
    """What to tell of a batch that hung."""
    return (
        f"{where}, {named_lines(where, rows)}: {backend} gave no answer within "
        f"batch_timeout={seconds:g} s and was stopped; look at these rows, raise batch_timeout, "
        "or lower batch_size"
    )


class WorkerLimit:
    """Ends this process, a worker of Ray's, when a call takes too long.

    Args:
        seconds: The limit.
        report: Says which rows hung; called from a thread, just before the end.
    """

    def __init__(self, seconds: float, report: Callable[[Sequence[Row]], None]) -> None:
        self._seconds = seconds
        self._report = report

    def __call__(self, rows: Sequence[Row], call: Callable[[], T]) -> T:
        """The call's value, unless this process ends first."""
        done = threading.Event()

        def watch() -> None:
            if not done.wait(self._seconds):
                with suppress(Exception):
                    self._report(rows)
                os._exit(1)

        threading.Thread(target=watch, daemon=True, name="sheaf-batch-timeout").start()
        # A library that keeps the interpreter locked keeps our thread from running as well. This
        # timer is none of Python's; the death is then counted like any other.
        faulthandler.dump_traceback_later(self._seconds + _GRACE_SECONDS, exit=True, file=2)
        try:
            return call()
        finally:
            done.set()
            faulthandler.cancel_dump_traceback_later()
