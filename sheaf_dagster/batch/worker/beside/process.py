"""A process beside the model's, as the model's sees it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sheaf_dagster.batch.worker.beside.link import Link
from sheaf_dagster.batch.worker.beside.messages import Begin, Chunks, Failed
from sheaf_dagster.batch.worker.beside.todo import Work

__all__ = ["Process", "environment_of"]


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
        self._link = Link(ours)
        self._heard = heard
        self._cpus = cpus
        self._works: set[int] = set()
        self.held: dict[tuple[int, int], Work] = {}
        """Chunks that it has been given, by file and number."""
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603  (this interpreter)
                [sys.executable, *_flags(), "-c", _code(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment_of(cpus),
            )
        threading.Thread(target=self._listen, args=(start,), daemon=True, name="sheaf-link").start()

    def begin(self, context: bytes, budget: int | None) -> None:
        """Has it ask for chunks."""
        self._works.clear()
        self.held.clear()
        self.send(Begin(context, environment_of(self._cpus), budget))

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

    def _listen(self, start: bytes) -> None:
        try:
            self._link.send_pickled(start)
            del start
            while True:
                self._heard(self, self._link.receive())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(1)
            self._heard(self, Failed(f"it ended (exit status {self._popen.returncode})"))
        except BaseException as e:  # something that can't be read here
            self._heard(self, Failed(f"{type(e).__name__}: {e}"))


def environment_of(cpus: int) -> dict[str, str]:
    """The variables that a process is to have."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cpus)}


def _flags() -> list[str]:
    """This interpreter's own, such as ``-O``; as for the processes of ``multiprocessing``."""
    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]


def _code(descriptor: int) -> str:
    """What it runs: with the modules of this process, but not its ``__main__``."""
    return (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"sys.path[:] = {sys.path!r}\n"
        f"from sheaf_dagster.batch.worker.beside.child import main; main({descriptor})"
    )
