"""A process beside the model's, as the model's sees it."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.worker.beside.link import Link
from sheaf_dagster.batch.worker.beside.messages import Begin, Chunks, Failed
from sheaf_dagster.storage import Chunk

__all__ = ["Process", "Work", "pickled"]

Work = tuple[FileWork, Chunk]

_MOST_BYTES = 256 * 2**20


class Process:
    """A process that reads, prepares, answers and writes.

    Args:
        start: A ``Start``, pickled.
        heard: Is given each message, and the process; in a thread of its own. At its end that is
            a ``Failed``.
        cpus: CPUs for libraries that have threads of their own.
    """

    def __init__(self, start: bytes, heard: Callable[[Process, Any], None], cpus: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603  (this interpreter)
                [sys.executable, "-c", _code(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cpus)},
            )
        self._link = Link(ours)
        self._heard = heard
        self._start = start
        self._works: set[int] = set()
        self.held: dict[tuple[int, int], Work] = {}
        """Chunks that it has been given, by file and number."""
        threading.Thread(target=self._listen, daemon=True, name="sheaf-link").start()

    def begin(self) -> None:
        """Has it ask for chunks."""
        self._works.clear()
        self.held.clear()
        self.send(Begin())

    def give(self, few: Sequence[Work]) -> None:
        """Gives it chunks; none: there are no more."""
        self.held |= {(work.id, chunk.index): (work, chunk) for work, chunk in few}
        new = {work.id: work for work, _ in few if work.id not in self._works}
        self._works |= new.keys()
        self.send(Chunks(new, [(work.id, chunk) for work, chunk in few]))

    def send(self, message: Any) -> None:
        """Sends a message; what can't arrive any more is passed over."""
        with suppress(OSError):
            self._link.send(message)

    def kill(self) -> None:
        """Ends it at once."""
        with suppress(OSError):
            self._popen.send_signal(signal.SIGKILL)
        self._popen.wait()
        self._link.close()

    def _listen(self) -> None:
        try:
            self._link.send_raw(self._start)
            while True:
                self._heard(self, self._link.receive())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(1)
            self._heard(self, Failed(f"it ended (exit status {self._popen.returncode})"))
        except BaseException as e:  # something that can't be read here
            self._heard(self, Failed(f"{type(e).__name__}: {e}"))


def _code(descriptor: int) -> str:
    """What it runs: with the modules of this process, but not its ``__main__``."""
    return (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from sheaf_dagster.batch.worker.beside.child import main; main({descriptor})"
    )


def pickled(what: Any) -> bytes:
    """Something for a process that doesn't have this one's ``__main__``.

    Raises:
        Exception: It can't be pickled.
    """
    try:
        data = pickle.dumps(what, 5)
    except Exception:  # a class that was made in a function, say
        data = b"__main__"
    if b"__main__" in data:
        from ray import cloudpickle

        data = cloudpickle.dumps(what, 5)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it takes {len(data) >> 20} MB")
    return data
