"""The far end of ``launch="ray_job"``: runs a step's files as a driver on the cluster.

Started by a Ray job as ``python -m sheaf_dagster.pipes``. What came of each file, logs and
progress go back through Dagster Pipes; everything that Dagster records is recorded where the
step runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import closing
from typing import Any, NoReturn

from dagster_pipes import PipesContext, open_dagster_pipes

from sheaf_dagster.batch.logs import logs_told_to
from sheaf_dagster.batch.messages import ErrorMessage
from sheaf_dagster.batch.orders import FileOutcome, StepOrder
from sheaf_dagster.batch.progress import progress_lines

__all__ = ["ENTRYPOINT", "ORDER", "main"]

ENTRYPOINT = "python -m sheaf_dagster.pipes"
"""What a Ray job of a step runs."""

ORDER = "sheaf_dagster"
"""Key of the order among the extras of the Pipes session, and of what is sent back."""

_WRITE_BYTES = 4 * 2**20


def main() -> int:
    """Runs the order of this process's Pipes session; 0 where every file was committed."""
    signal.signal(signal.SIGTERM, _interrupt)  # how a Ray job is stopped
    # A message must reach the job's log in one write, or a line of Ray's could cut it in two.
    sys.stdout = os.fdopen(os.dup(1), "w", _WRITE_BYTES)
    with open_dagster_pipes() as pipes:
        sender = _Sender(pipes)
        try:
            return _run(StepOrder.from_message(pipes.get_extra(ORDER)), sender)
        except Exception as e:
            sender.send({"ended": ErrorMessage.of(e).briefly().to_dict()})
            return 1


def _run(order: StepOrder, sender: _Sender) -> int:
    failed = False
    say = progress_lines(
        lambda text: sender.log("info", text),
        every_s=order.progress_every_s,
        files=len(order.files),
        noun="partitions",
    )
    with logs_told_to(lambda level, text: sender.log(_level(level), text)):
        runner = order.runner(say)
        sender.send({"began": runner.model_identity() if order.identify else None})
        # Closed at once, wherever SIGTERM finds us: sinks are given free before Ray goes.
        with closing(runner.run_many(order.files, committed=order.committed)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                failed |= not outcome.ok
                sender.send({"file": FileOutcome.of(outcome, order.model).to_message()})
    sender.send({"ended": None})
    return int(failed)


def _level(number: int) -> str:
    return "error" if number >= 40 else "warning" if number >= 30 else "info"


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt  # the job ends as by Ctrl-C: sinks are given free, parts stay


class _Sender:
    """Messages of one process; several threads send them, a line at a time."""

    def __init__(self, pipes: PipesContext) -> None:
        self._pipes = pipes
        self._lock = threading.Lock()
        self._sent = 0

    def send(self, payload: dict[str, Any]) -> None:
        with self._lock:
            self._pipes.report_custom_message({ORDER: payload, "number": self._sent})
            self._sent += 1
            sys.stdout.flush()

    def log(self, level: str, text: str) -> None:
        with self._lock:
            getattr(self._pipes.log, level)(text)
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
