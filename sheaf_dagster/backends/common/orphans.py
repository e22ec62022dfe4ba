"""Processes that end with the one that started them, however that ends.

A worker that is killed runs no code of its own any more. What it has started may live on, with the
memory of a device that the next worker needs.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ChildWatch"]

_WATCH = """
import os, sys, time, psutil

parent, *numbers = map(int, sys.argv[1:])
watched = []
for number in numbers:
    try:
        watched.append(psutil.Process(number))
    except psutil.Error:
        pass
while os.getppid() == parent:
    time.sleep(0.5)
for process in watched:
    try:
        process.kill()  # not another one that has got its number meanwhile
    except psutil.Error:
        pass
"""
"""It asks who its parent is: a pipe from there would be held open by whatever that forks."""


class ChildWatch:
    """A small process that ends children of this one once this one is gone; takes ``psutil``."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def over_new(self) -> Iterator[None]:
        """Watches over what ``multiprocessing`` starts in the block, and what that has started."""
        import psutil

        before = {child.pid for child in multiprocessing.active_children()}
        yield
        new = {child.pid for child in multiprocessing.active_children()} - before
        below = [c.pid for pid in new for c in psutil.Process(pid).children(recursive=True)]
        self._process = subprocess.Popen(  # noqa: S603  (our own words)
            [sys.executable, "-c", _WATCH, *map(str, (os.getpid(), *new, *below))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # what ends this process's group must not end it
        )

    def close(self) -> None:
        """Ends the watch: the children have ended, or may go on."""
        if self._process is not None:
            self._process.kill()  # it has nothing to clear up, and SIGTERM may be held back here
            self._process.wait()
