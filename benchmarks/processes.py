"""Rows whose preparing holds the interpreter lock: processes beside the model against threads.

A row takes 5 ms of Python to prepare and 1 ms on the device, which only sleeps. Threads prepare one
row after the other, however many there are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from benchmarks.common import in_turn, requests_file, respond
from sheaf_dagster import BatchRunner, BatchSpec, ModelBackend, ModelSpec, ResourceConfig
from sheaf_dagster.contracts import TimeSeriesRequest, TimeSeriesResponse

ROWS = 2_000
ROUNDS = 5
PREPARE_SECONDS, DEVICE_SECONDS = 0.005, 0.001


class Locks(ModelBackend):
    """Holds the interpreter lock while it prepares a row. Threads do it."""

    model_type = "time_series"

    def load(self) -> None:
        """Nothing to load."""

    def prepare(self, request: TimeSeriesRequest) -> TimeSeriesRequest:
        """The row, after so much of Python."""
        until = time.thread_time() + PREPARE_SECONDS
        while time.thread_time() < until:
            pass
        return request

    def infer(self, prepared: Sequence[TimeSeriesRequest]) -> Sequence[TimeSeriesRequest]:
        """The rows, a little later."""
        time.sleep(DEVICE_SECONDS * len(prepared))
        return prepared

    def respond(self, requests: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """The mean of each history."""
        return [respond(row, TimeSeriesResponse) for row in outputs]


class LocksBeside(Locks):
    """The same, which may be done in processes."""

    def without_model(self) -> LocksBeside:
        """All of it: there is no model."""
        return copy(self)


def processes(folder: Path) -> dict[str, Any]:
    """The same rows by threads and by processes, as the worker itself has found out."""
    job = BatchSpec(
        source=str(requests_file(folder, ROWS)),
        sink=str(folder / "processes.out"),
        compute="local",
        resume=False,
    )
    runners = {
        cls: BatchRunner(
            ModelSpec(
                name=cls.__name__,
                model_type="time_series",
                backend=f"benchmarks.processes:{cls.__name__}",
                resources=ResourceConfig(num_cpus=2),
            ),
            on_progress=None,
        )
        for cls in (Locks, LocksBeside)
    }
    return in_turn(
        "processes over threads",
        ROWS,
        {
            "threads": lambda: runners[Locks].run(job),
            "processes": lambda: runners[LocksBeside].run(job),
        },
        ROUNDS,
    )
